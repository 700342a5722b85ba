// A row of parameters as a table of its bins, for numbers that share it (CPU). Lanes are bins while the table is made,
// and numbers when it is read: bins that fit into two registers are picked from there by a permutation. The table is
// made in double, because a knot's rounding error, which all numbers share, would not average out of their sums.
#pragma once

#include <type_traits>

#include "common/pack.h"
#include "common/scratch.h"
#include "ops/rq_spline/rq_spline_math.h"

namespace gf {
inline namespace GF_BACKEND {

// Lane i from p[at[i]].
template <class P, class T>
GF_HD P gather(const T* p, typename P::IntVec at) {
#if defined(__AVX512F__)
  if constexpr (std::is_same<T, float>::value)
    return P((typename P::Vec)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, (__m512i)at, p, 4));
#endif
  typename P::Int place[P::size];
  T values[P::size];
  memcpy(place, &at, sizeof(place));
  for (int i = 0; i < P::size; ++i) values[i] = p[place[i]];
  return load<P>(values);
}

template <class T>
class RqTable {
 public:
  using P = Native<T>;
  using Wide = Native<double>;
  using U = RqUnits<P>;
  using Units = typename U::Units;
  using IntVec = typename P::IntVec;

  // The same constants twice.
  RqTable(const RqConstants<T>& c, const RqConstants<double>& wide)
      : c_(c),
        wide_(wide),
        span_((c.bins + P::size - 1) / P::size * P::size),
        fields_(kFields * span_),
        row_(kRow * (span_ + P::size)) {
    memset(row_.get(), 0, kRow * (span_ + P::size) * sizeof(double));
    wide_.least_w = max(wide_.least_w, U::kLeast);
    wide_.least_h = max(wide_.least_h, U::kLeast);
  }

  // Where logits and raw slopes go before `build`; no more slopes than c.slopes_read.
  double* widths() { return row(kWidths); }
  double* heights() { return row(kHeights); }
  double* slopes() { return row(kRaw) - c_.first_slope; }  // so that each lies at the number of its knot

  void build() {
    double sum_w, sum_h;
    const double scale_w = exponentials(widths(), wide_.free_w), scale_h = exponentials(heights(), wide_.free_h);
    total_w_ = knots(widths(), scale_w, wide_.least_w, field(kX), field(kUnitsW), &sum_w);
    total_h_ = knots(heights(), scale_h, wide_.least_h, field(kY), field(kUnitsH), &sum_h);
    double *d = row(kSlopes), *raw = row(kRaw);  // at the knots
    if (c_.circular) raw[c_.bins] = raw[0];
    const auto inner = Wide(0) != Wide(0);
    for (int j = 0; j <= c_.bins; j += Wide::size) store(d + j, rq_slope(load<Wide>(raw + j), inner, wide_).d);
    if (c_.fixed_first == 0) d[0] = wide_.edge;
    if (c_.fixed_last >= 0) d[c_.bins] = wide_.edge;
    for (int j = 0; j < span_; j += Wide::size) {
      const Wide size_w = fma(load<Wide>(widths() + j), Wide(scale_w), Wide(wide_.least_w));
      const Wide size_h = fma(load<Wide>(heights() + j), Wide(scale_h), Wide(wide_.least_h));
      const RqShape<Wide> s =
          rq_shape(size_w, size_h, Wide(sum_w), Wide(sum_h), load<Wide>(d + j), load<Wide>(d + 1 + j), wide_);
      const Wide shape[] = {s.w, s.h, s.delta, s.a, s.b};
      for (int q = 0; q < 5; ++q)
        for (int i = 0; i < Wide::size; ++i) field(kW + q)[j + i] = static_cast<T>(shape[q][i]);
    }
  }

  // The bin of each number, and its shape.
  template <bool kInverse>
  GF_HD void locate(P v, RqBin<P>* bin, RqShape<P>* s) const {
    bin->total_w = total_w_, bin->total_h = total_h_;
    bin->place = U::place(v, kInverse ? total_h_ : total_w_, c_.template from<kInverse>());
    const T* start = field(kInverse ? kY : kX);
    IntVec k{};
    for (int j = 1; j < c_.bins; ++j) k -= U::reached(bin->place, splat(start + j)).m;
    bin->k = k;
    bin->x = pick_units(kX, k), bin->y = pick_units(kY, k);
    bin->w = pick_units(kUnitsW, k), bin->h = pick_units(kUnitsH, k);
    s->w = pick(kW, k), s->h = pick(kH, k), s->delta = pick(kDelta, k), s->a = pick(kA, k), s->b = pick(kB, k);
  }

 private:
  enum { kX, kY, kUnitsW, kUnitsH, kW, kH, kDelta, kA, kB, kFields };
  enum { kWidths, kHeights, kRaw, kSlopes, kRow };
  using Unit = std::conditional_t<std::is_same<T, float>::value, int32_t, double>;

  T* field(int i) { return fields_.get() + i * span_; }
  const T* field(int i) const { return const_cast<RqTable*>(this)->field(i); }
  double* row(int i) { return row_.get() + i * (span_ + P::size); }  // with room for a number more

  static GF_HD Units splat(const T* unit) {
    Unit u;
    memcpy(&u, unit, sizeof(u));
    if constexpr (std::is_same<T, float>::value)
      return RqIndex<P>::splat(u);
    else
      return P(u);
  }

  GF_HD P pick(int i, IntVec k) const {
    const T* p = field(i);
#if !defined(__clang__)
    if (span_ == P::size) return P(__builtin_shuffle(load<P>(p).v, k));
    if (span_ == 2 * P::size) return P(__builtin_shuffle(load<P>(p).v, load<P>(p + P::size).v, k));
#endif
    return gather<P>(p, k);
  }
  GF_HD Units pick_units(int i, IntVec k) const { return as<Units>(pick(i, k)); }

  // Replaces logits by exp(logit - max); returns free / sum of exponentials.
  double exponentials(double* e, double free) const {
    if (c_.zuko) {
      for (int j = 0; j < c_.bins; ++j) rq_soft_clip(e + j, wide_.clip_logits);
    }
    double top = e[0], sum = 0;
    for (int j = 1; j < c_.bins; ++j) top = max(top, e[j]);
    for (int j = c_.bins; j < span_; ++j) e[j] = top;
    for (int j = 0; j < span_; j += Wide::size) store(e + j, exp(load<Wide>(e + j) - Wide(top)));
    for (int j = 0; j < c_.bins; ++j) sum += e[j];
    return free / sum;
  }

  // Left knots and sizes in units; returns the axis' length, and in `sum` that before it is rounded to units.
  Units knots(const double* e, double scale, double least, T* start, T* size, double* sum) const {
    Unit at = 0;
    *sum = 0;
    for (int j = 0; j < c_.bins; ++j) {
      *sum += e[j] * scale + least;
      const Unit next = unit_of(*sum, at), length = next - at;
      memcpy(start + j, &at, sizeof(at));
      memcpy(size + j, &length, sizeof(length));
      at = next;
    }
    T total;
    memcpy(&total, &at, sizeof(at));
    return splat(&total);
  }
  // A bin is one unit at least, also where a parameter is NaN.
  static Unit unit_of(double sum, Unit last) {
    if constexpr (std::is_same<T, double>::value) return sum;
    const Unit next = sum >= 0 ? static_cast<Unit>(sum * U::kAxis + 0.5) : 0;
    return next > last ? next : last + 1;
  }

  const RqConstants<T>& c_;
  RqConstants<double> wide_;
  int span_;
  Scratch<T> fields_;
  Scratch<double> row_;
  Units total_w_, total_h_;
};

}  // namespace GF_BACKEND
}  // namespace gf
