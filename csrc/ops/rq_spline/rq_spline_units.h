// Positions along an axis of the spline, in units of 2^-30 of the whole axis: knots are exact sums of whole numbers.
//
// With float32 knots the two directions of the map, and the two bins that meet at a knot, would disagree by a rounding
// error of the knot (1e-7 of the axis), which the inverse magnifies by 1 / slope, up to 1000 and beyond. Whole numbers
// add without error, and the few steps between them and float32 are done in double. In float64 plain numbers suffice:
// there a unit is the axis. A bin is kLeast of the axis at least, also where no minimum is asked for.
#pragma once

#include "common/real.h"

namespace gf {
inline namespace GF_BACKEND {

// The axis [start, end].
template <class T>
struct RqAxis {
  T start, end;
  double wide_start, length;
  double inverse, offset;  // 1 / length, and -start / length
  double unit;             // the length of a unit
};

// Double, and packs of it.
template <class R>
struct RqUnits {
  using Units = R;
  static constexpr double kAxis = 1, kHalf = 0, kLeast = 1.0 / (int64_t(1) << 50);
  static GF_HD Units zero() { return R(0); }
  static GF_HD Units from_size(R size) { return size; }
  static GF_HD R to_real(Units u) { return u; }
  static GF_HD auto reached(Units v, Units knot) { return v >= knot; }
  static GF_HD Units pick(decltype(R(0) < R(0)) m, Units a, Units b) { return select(m, a, b); }
  // Where v lies on the axis; the axis sums to `total`, which is kAxis up to rounding.
  static GF_HD Units place(R v, Units total, const RqAxis<double>& axis) {
    return (v - R(axis.start)) * R(axis.inverse) * total;
  }
  // The number at `offset` from position u.
  static GF_HD R value(Units u, Units total, R offset, const RqAxis<double>& axis) {
    return u * (R(2) - total) * R(axis.length) + R(axis.start) + offset;
  }
};

template <>
struct RqUnits<float> {
  using Units = int32_t;
  static constexpr double kAxis = 1 << 30, kHalf = 0.5, kLeast = 1.0 / (1 << 30);
  static GF_HD Units zero() { return 0; }
  static GF_HD Units from_size(float size) { return size >= 0 ? static_cast<int32_t>(size) : 0; }
  static GF_HD float to_real(Units u) { return static_cast<float>(u); }
  static GF_HD bool reached(Units v, Units knot) { return v >= knot; }
  static GF_HD Units pick(bool m, Units a, Units b) { return m ? a : b; }
  static GF_HD Units place(float v, Units total, const RqAxis<float>& axis) {
    return static_cast<int32_t>((v - axis.wide_start) * axis.inverse * total + 0.5);
  }
  static GF_HD float value(Units u, Units total, float offset, const RqAxis<float>& axis) {
    const double r = 2 - total * (1 / kAxis);  // kAxis / total, to first order
    return static_cast<float>((u * r) * axis.unit + axis.wide_start + offset);
  }
};

#if !defined(__CUDACC__)

template <int N>
struct RqUnits<Pack<float, N>> {
  using R = Pack<float, N>;
  using Units = typename R::IntVec;
  using Wide = Pack<double, N / 2>;
  typedef int32_t HalfInts __attribute__((vector_size(N * 2)));
  typedef float HalfFloats __attribute__((vector_size(N * 2)));
  static constexpr double kAxis = 1 << 30, kHalf = 0.5, kLeast = 1.0 / (1 << 30);

  static GF_HD Units zero() { return Units{}; }
  static GF_HD Units from_size(R size) { return __builtin_convertvector(size.v, Units); }
  static GF_HD R to_real(Units u) { return R(__builtin_convertvector(u, typename R::Vec)); }
  static GF_HD Mask<float, N> reached(Units v, Units knot) { return {v >= knot}; }
  static GF_HD Units pick(Mask<float, N> m, Units a, Units b) { return m.m ? a : b; }

  template <class Half, class V>
  static GF_HD Wide widen(V v, int half) {
    Half part[2];
    memcpy(part, &v, sizeof(v));
    return Wide(__builtin_convertvector(part[half], typename Wide::Vec));
  }
  template <class Half, class V>
  static GF_HD V narrow(Wide low, Wide high) {
    const Half part[2] = {__builtin_convertvector(low.v, Half), __builtin_convertvector(high.v, Half)};
    V v;
    memcpy(&v, part, sizeof(v));
    return v;
  }

  static GF_HD Units place(R v, Units total, const RqAxis<float>& axis) {
    Wide r[2];
    for (int i = 0; i < 2; ++i) {
      const Wide along = fma(widen<HalfFloats>(v.v, i), Wide(axis.inverse), Wide(axis.offset));
      r[i] = fma(along, widen<HalfInts>(total, i), Wide(0.5));
    }
    return narrow<HalfInts, Units>(r[0], r[1]);
  }
  static GF_HD R value(Units u, Units total, R offset, const RqAxis<float>& axis) {
    Wide y[2];
    for (int i = 0; i < 2; ++i) {
      const Wide r = Wide(2) - widen<HalfInts>(total, i) * Wide(1 / kAxis);
      const Wide knot = fma(widen<HalfInts>(u, i) * r, Wide(axis.unit), Wide(axis.wide_start));
      y[i] = knot + widen<HalfFloats>(offset.v, i);
    }
    return R(narrow<HalfFloats, typename R::Vec>(y[0], y[1]));
  }
};

#endif  // !__CUDACC__

}  // namespace GF_BACKEND
}  // namespace gf
