// Affine coupling, one element (Dinh et al. 2017; the scale maps are those of RealNVP, Glow, FrEIA, nflows and zuko).
//
//   y = x s + t,  log|dy/dx| = log s,  s = s(a) > 0 a map of the raw parameter a;   inverse x = (y - t) / s
//
// Adjoint of (x, t, a) -> (y, log s), with g the cotangent of y, l that of log s, and slope = d log s / da:
//   dL/dx = g s,  dL/dt = g,  dL/da = (g x s + l) slope
// Adjoint of the inverse (y, t, a) -> (x, -log s), with g the cotangent of x and l that of -log s:
//   dL/dy = g / s,  dL/dt = -g / s,  dL/da = -(g x + l) slope
// Both need x alone of the two sides, so x is what is kept.
//
// log s comes from the raw parameter and not from s, which may round to 0 or 1; it saturates at +-limit, where its
// slope is 0, so that s and 1 / s stay finite and far from the ends of float32.
#pragma once

#include "common/real.h"
#include "ops/coupling/coupling.h"

namespace gf {
inline namespace GF_BACKEND {

// The constants of a scale map in the type of the arithmetic.
template <class T>
struct ScaleConstants {
  T clamp, offset, min_scale, gain, limit, lowest, highest;  // lowest = e^-limit, highest = e^limit

  static ScaleConstants from(const ScaleSpec& s) {
    const double gain = s.map == ScaleMap::tanh ? s.gain / s.clamp : s.gain;
    return {static_cast<T>(s.clamp),       static_cast<T>(s.offset), static_cast<T>(s.min_scale),
            static_cast<T>(gain),          static_cast<T>(s.limit),  static_cast<T>(::exp(-s.limit)),
            static_cast<T>(::exp(s.limit))};
  }
};

template <class R>
struct Scale {
  R s, log_s, slope;
};

// --- exp, log and log1p on the range where they are needed here
// -------------------------------------------------------

template <class R>
GF_HD R coupling_exp(R x) {  // the result is a normal number
  return exp(x);
}
template <class R>
GF_HD R coupling_log(R x) {  // x is a positive normal number
  return log(x);
}

// 1 / (1 + z) and log(1 + z) for z in [0, 1].
template <class R>
struct UnitLog {
  R reciprocal, log1p;
};
template <class R>
GF_HD UnitLog<R> coupling_log1p(R z) {
  return {R(1) / (R(1) + z), log1p(z)};
}

#if !defined(__CUDACC__)

template <class T, int N>
GF_HD Pack<T, N> coupling_exp(Pack<T, N> x) {
  typename Pack<T, N>::IntVec n;
  const Pack<T, N> q = expm1_series(exp_reduce(x, &n));
  const Pack<T, N> power = exp2_int<Pack<T, N>>(n);
  return fma(power, q, power);
}

template <class T, int N>
GF_HD Pack<T, N> coupling_log(Pack<T, N> x) {
  return select(x == x, log_normal(x, Pack<T, N>(0)), x);
}

// log(1 + z) = 2 atanh(q), q = z / (2 + z) <= 1/3, by its series; one division serves both results.
template <class T, int N>
GF_HD UnitLog<Pack<T, N>> coupling_log1p(Pack<T, N> z) {
  using P = Pack<T, N>;
  constexpr int terms = sizeof(T) == 8 ? 17 : 8;
  const P a = P(1) + z, b = P(2) + z, inverse = P(1) / (a * b);
  const P q = z * a * inverse, square = q * q;
  P p(T(1) / (2 * terms - 1));
  for (int i = terms - 2; i > 0; --i) p = fma(p, square, P(T(1) / (2 * i + 1)));
  return {b * inverse, P(2) * fma(p * square, q, q)};
}

#endif  // !__CUDACC__

// Into [-limit, limit]; NaN stays NaN.
template <class R>
GF_HD R saturate(R x, R limit) {
  return max(-limit, min(limit, x));
}

template <ScaleMap kMap, class R, class T>
GF_HD Scale<R> coupling_scale(R a, const ScaleConstants<T>& k) {
  constexpr bool by_log = kMap == ScaleMap::exp || kMap == ScaleMap::tanh || kMap == ScaleMap::atan ||
                          kMap == ScaleMap::softclip;  // the map gives log s, and s = e^(log s)
  const R zero(0), one(1);
  // atan and softclip are constant beyond it; keeps squares and ratios finite.
  const R far(T(1e18));
  // e^-u does not matter beyond it, and is a normal number before.
  const R reach(T(sizeof(T) == 8 ? 700 : 87));
  R s, log_s(0), slope;
  if constexpr (kMap == ScaleMap::exp) {
    log_s = a;
    slope = one;
  } else if constexpr (kMap == ScaleMap::tanh) {
    // clamp tanh(v) by E = expm1(2 |v|): tanh = E / (E + 2), tanh' = 4 (E + 1) / (E + 2)^2, which keeps its tail.
    const R v = R(k.gain) * a;
    const R y = min(R(20), abs(v));
    const R e = expm1(y + y);
    const R r = one / (e + R(2));
    const R t = R(k.clamp) * e * r;
    log_s = select(v < zero, -t, t);
    slope = R(T(4) * k.clamp * k.gain) * (e + one) * r * r;
  } else if constexpr (kMap == ScaleMap::atan) {
    // FrEIA's clamp 0.636 atan(v), 0.636 for 2 / pi.
    const R v = saturate(R(k.gain) * a, far);
    const R c(T(0.636) * k.clamp);
    log_s = c * atan(v);
    slope = R(T(0.636) * k.clamp * k.gain) / fma(v, v, one);
  } else if constexpr (kMap == ScaleMap::softclip) {
    const R v = saturate(a, far);
    const R r = one / (one + abs(v) / R(k.clamp));
    log_s = v * r;
    slope = r * r;
  } else {
    const R u = a + R(k.offset);
    const R z = coupling_exp(-min(reach, abs(u)));
    const UnitLog<R> f = coupling_log1p(z);
    const R r = f.reciprocal;
    const auto positive = u >= zero;
    if constexpr (kMap == ScaleMap::sigmoid) {
      s = select(positive, r, z * r);
      if (k.min_scale > T(0)) {
        s = s + R(k.min_scale);
        slope = z * r * r / s;
      } else {
        log_s = min(zero, u) - f.log1p;
        slope = select(positive, z * r, r);
      }
    } else if constexpr (kMap == ScaleMap::softplus) {
      s = max(zero, u) + f.log1p + R(k.min_scale);
      slope = select(positive, r, z * r) / s;
    } else {
      s = (one + z) / select(positive, one, z);
      log_s = f.log1p - min(zero, u);
      slope = -select(positive, z * r, r);
    }
    slope = select((s < R(k.lowest)) | (s > R(k.highest)), zero, slope);
    s = max(R(k.lowest), min(R(k.highest), s));
    if (kMap == ScaleMap::softplus || (kMap == ScaleMap::sigmoid && k.min_scale > T(0))) log_s = coupling_log(s);
  }
  if constexpr (by_log) slope = select(abs(log_s) > R(k.limit), zero, slope);
  log_s = saturate(log_s, R(k.limit));
  if constexpr (by_log) s = coupling_exp(log_s);
  return {s, log_s, slope};
}

template <class R>
struct CouplingAdjoint {
  R x, shift, raw;
};

template <class R>
GF_HD R coupling_apply(bool inverse, R x, R shift, R s) {
  return inverse ? (x - shift) / s : fma(x, s, shift);
}

// `x` is the side before scale and shift.
template <class R>
GF_HD CouplingAdjoint<R> coupling_adjoint(bool inverse, R g, R l, R x, const Scale<R>& f) {
  const R gx = inverse ? g / f.s : g * f.s;
  const R of_log_s = inverse ? -fma(g, x, l) : fma(gx, x, l);
  // Where s is saturated its gradient is 0, also if g x overflows.
  return {gx, inverse ? -gx : g, select(f.slope == R(0), R(0), of_log_s * f.slope)};
}

// f(integral_constant of the scale map)
template <class F>
GF_HD auto dispatch_scale_map(ScaleMap map, F&& f) {
#define GF_MAP(name)   \
  case ScaleMap::name: \
    return f(std::integral_constant<ScaleMap, ScaleMap::name>{})
  switch (map) {
    GF_MAP(sigmoid);
    GF_MAP(softplus);
    GF_MAP(tanh);
    GF_MAP(atan);
    GF_MAP(softclip);
    GF_MAP(reciprocal_sigmoid);
    default:
      return f(std::integral_constant<ScaleMap, ScaleMap::exp>{});
  }
#undef GF_MAP
}

}  // namespace GF_BACKEND
}  // namespace gf
