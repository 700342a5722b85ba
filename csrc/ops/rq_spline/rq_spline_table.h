// A row of parameters as a table of its bins, for numbers that share it (CPU). Lanes are bins while the table is made,
// and numbers when it is read: bins that fit into two registers are picked from there by a permutation.
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
  using U = RqUnits<P>;
  using Units = typename U::Units;
  using IntVec = typename P::IntVec;

  explicit RqTable(const RqConstants<T>& c)
      : c_(c), span_((c.bins + P::size - 1) / P::size * P::size), memory_(kAll * (span_ + P::size)) {
    memset(memory_.get(), 0, kAll * (span_ + P::size) * sizeof(T));
  }

  // Where logits and raw slopes go before `build`; no more slopes than bins.
  T* widths() { return field(kWidths); }
  T* heights() { return field(kHeights); }
  T* slopes() { return field(kRaw) + 1; }

  void build() {
    const T scale_w = exponentials(widths(), c_.free_w), scale_h = exponentials(heights(), c_.free_h);
    total_w_ = knots(widths(), scale_w, c_.least_w, field(kX), field(kUnitsW));
    total_h_ = knots(heights(), scale_h, c_.least_h, field(kY), field(kUnitsH));
    T* d = field(kSlopes) + 1;  // at the right ends of the bins; before them, at the left end of the first
    const auto inner = P(0) != P(0);
    for (int j = 0; j < span_; j += P::size) store(d + j, rq_slope(load<P>(slopes() + j), inner, c_).d);
    d[-1] = 1;
    if (!c_.outer_slope) d[c_.bins - 1] = 1;
    for (int j = 0; j < span_; j += P::size) {
      const P size_w = fma(load<P>(widths() + j), P(scale_w), P(c_.least_w));
      const P size_h = fma(load<P>(heights() + j), P(scale_h), P(c_.least_h));
      const RqShape<P> s = rq_shape(size_w, size_h, total_w_, total_h_, load<P>(d - 1 + j), load<P>(d + j), c_);
      store(field(kW) + j, s.w), store(field(kH) + j, s.h), store(field(kDelta) + j, s.delta);
      store(field(kA) + j, s.a), store(field(kB) + j, s.b);
    }
  }

  // The bin of each number, and its shape.
  template <bool kInverse>
  GF_HD void locate(P v, RqBin<P>* bin, RqShape<P>* s) const {
    bin->total_w = total_w_, bin->total_h = total_h_;
    bin->place = U::place(v, kInverse ? total_h_ : total_w_, c_.axis);
    const T* start = field(kInverse ? kY : kX);
    IntVec k{};
    for (int j = 1; j < c_.bins; ++j) k -= U::reached(bin->place, splat(start + j)).m;
    bin->k = k;
    bin->x = pick_units(kX, k), bin->y = pick_units(kY, k);
    bin->w = pick_units(kUnitsW, k), bin->h = pick_units(kUnitsH, k);
    s->w = pick(kW, k), s->h = pick(kH, k), s->delta = pick(kDelta, k), s->a = pick(kA, k), s->b = pick(kB, k);
  }

 private:
  enum { kX, kY, kUnitsW, kUnitsH, kW, kH, kDelta, kA, kB, kWidths, kHeights, kRaw, kSlopes, kAll };
  using Unit = std::conditional_t<std::is_same<T, float>::value, int32_t, double>;

  // With room for one number more than lanes at the end of it.
  T* field(int i) { return memory_.get() + i * (span_ + P::size); }
  const T* field(int i) const { return const_cast<RqTable*>(this)->field(i); }

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
  T exponentials(T* e, T free) const {
    T top = e[0], sum = 0;
    for (int j = 1; j < c_.bins; ++j) top = max(top, e[j]);
    for (int j = c_.bins; j < span_; ++j) e[j] = top;
    for (int j = 0; j < span_; j += P::size) store(e + j, rq_exp_below_one(load<P>(e + j) - P(top)));
    for (int j = 0; j < c_.bins; ++j) sum += e[j];
    return free * (T(1) / sum);
  }

  // Left knots and sizes in units; returns their total.
  Units knots(const T* e, T scale, T least, T* start, T* size) const {
    for (int j = 0; j < span_; j += P::size) {
      const Units u = U::from_size(fma(load<P>(e + j), P(scale), P(least + T(U::kHalf))));
      memcpy(size + j, &u, sizeof(u));
    }
    Unit sum = 0, one;
    for (int j = 0; j < c_.bins; ++j) {
      memcpy(start + j, &sum, sizeof(sum));
      memcpy(&one, size + j, sizeof(one));
      sum = static_cast<Unit>(add(sum, one));
    }
    T total;
    memcpy(&total, &sum, sizeof(sum));
    return splat(&total);
  }
  // Where a parameter is NaN, whole numbers overflow.
  static GF_HD int32_t add(int32_t a, int32_t b) {
    return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
  }
  static GF_HD double add(double a, double b) { return a + b; }

  const RqConstants<T>& c_;
  int span_;
  Scratch<T> memory_;
  Units total_w_, total_h_;
};

}  // namespace GF_BACKEND
}  // namespace gf
