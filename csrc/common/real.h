// The Real concept: one set of functions with the same names for float, double and Pack<T, N>, so that a formula is
// written once and compiled for the CPU's registers, for the GPU and for the host emulation of the GPU.
//
//   fma(a, b, c)      a b + c, fused where the file is compiled with contraction
//   select(m, a, b)   lane-wise m ? a : b; both sides are evaluated
//   any(m), all(m)    of a mask; a bool for scalars
//   abs min max sqrt exp expm1 log log1p tanh atan sigmoid softplus
//
// min and max return the second argument where the first is NaN; write min(limit, x) to let a NaN in x through.
// Accuracy of the packs: at most 3 ulp over all arguments, subnormal, infinite and NaN ones too (tests/test_real.py).
#pragma once

#include <cmath>

#include "pack.h"

namespace gf {
inline namespace GF_BACKEND {

template <class R>
struct ScalarOf {
  using type = R;
};
template <class R>
using scalar_t = typename ScalarOf<R>::type;

template <class T>
struct Limits;
template <>
struct Limits<float> {
  static constexpr float max = 3.40282346638528859812e+38f, min_normal = 1.17549435082228750797e-38f,
                         epsilon = 1.1920928955078125e-7f;
  static constexpr int mantissa_bits = 23, exponent_bias = 127;
};
template <>
struct Limits<double> {
  static constexpr double max = 1.79769313486231570815e+308, min_normal = 2.22507385850720138309e-308,
                          epsilon = 2.22044604925031308085e-16;
  static constexpr int mantissa_bits = 52, exponent_bias = 1023;
};

// --- scalars ---

GF_HD float select(bool m, float a, float b) { return m ? a : b; }
GF_HD double select(bool m, double a, double b) { return m ? a : b; }
GF_HD bool any(bool m) { return m; }
GF_HD bool all(bool m) { return m; }

#define GF_SCALAR_1(name, f32, f64)              \
  GF_HD float name(float x) { return ::f32(x); } \
  GF_HD double name(double x) { return ::f64(x); }
GF_SCALAR_1(abs, fabsf, fabs)
GF_SCALAR_1(sqrt, sqrtf, sqrt)
GF_SCALAR_1(exp, expf, exp)
GF_SCALAR_1(expm1, expm1f, expm1)
GF_SCALAR_1(log, logf, log)
GF_SCALAR_1(log1p, log1pf, log1p)
GF_SCALAR_1(tanh, tanhf, tanh)
GF_SCALAR_1(atan, atanf, atan)
#undef GF_SCALAR_1

GF_HD float fma(float a, float b, float c) { return a * b + c; }
GF_HD double fma(double a, double b, double c) { return a * b + c; }
GF_HD float min(float a, float b) { return a < b ? a : b; }
GF_HD double min(double a, double b) { return a < b ? a : b; }
GF_HD float max(float a, float b) { return a > b ? a : b; }
GF_HD double max(double a, double b) { return a > b ? a : b; }

// --- packs ---

#if !defined(__CUDACC__)

template <class T, int N>
struct ScalarOf<Pack<T, N>> {
  using type = T;
};

template <class T, int N>
GF_HD Pack<T, N> fma(Pack<T, N> a, Pack<T, N> b, Pack<T, N> c) {
  return a * b + c;
}
template <class T, int N>
GF_HD Pack<T, N> min(Pack<T, N> a, Pack<T, N> b) {
  return select(a < b, a, b);
}
template <class T, int N>
GF_HD Pack<T, N> max(Pack<T, N> a, Pack<T, N> b) {
  return select(a > b, a, b);
}

template <class To, class From>
GF_HD To as(From x) {
  To r;
  static_assert(sizeof(To) == sizeof(From), "reinterpretation needs equal sizes");
  memcpy(&r, &x, sizeof(r));
  return r;
}

template <class T, int N>
GF_HD Pack<T, N> abs(Pack<T, N> x) {
  using P = Pack<T, N>;
  const auto magnitude = static_cast<typename P::Int>(~(typename P::Int(1) << (8 * sizeof(T) - 1)));
  return as<typename P::Vec>(as<typename P::IntVec>(x.v) & magnitude);
}

template <class T, int N>
GF_HD Pack<T, N> sqrt(Pack<T, N> x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(x.v) == 64) {
    if constexpr (sizeof(T) == 4) return as<typename Pack<T, N>::Vec>(_mm512_sqrt_ps(as<__m512>(x.v)));
    if constexpr (sizeof(T) == 8) return as<typename Pack<T, N>::Vec>(_mm512_sqrt_pd(as<__m512d>(x.v)));
  }
#endif
#if defined(__AVX__)
  if constexpr (sizeof(x.v) == 32) {
    if constexpr (sizeof(T) == 4) return as<typename Pack<T, N>::Vec>(_mm256_sqrt_ps(as<__m256>(x.v)));
    if constexpr (sizeof(T) == 8) return as<typename Pack<T, N>::Vec>(_mm256_sqrt_pd(as<__m256d>(x.v)));
  }
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(x.v) == 16) {
    if constexpr (sizeof(T) == 4) return as<typename Pack<T, N>::Vec>(_mm_sqrt_ps(as<__m128>(x.v)));
    if constexpr (sizeof(T) == 8) return as<typename Pack<T, N>::Vec>(_mm_sqrt_pd(as<__m128d>(x.v)));
  }
#endif
  for (int i = 0; i < N; ++i) x.v[i] = ::sqrt(x.v[i]);
  return x;
}

// Nearest integer of |x| < 2^(mantissa - 1), as a number and as an integer vector: adding 1.5 2^mantissa leaves the
// integer in the low bits. Needs no rounding instruction, which SSE2 lacks.
template <class T, int N>
GF_HD Pack<T, N> round_to_int(Pack<T, N> x, typename Pack<T, N>::IntVec* n) {
  using P = Pack<T, N>;
  constexpr T magic = static_cast<T>(typename P::Int(3) << (Limits<T>::mantissa_bits - 1));
  const P shifted = x + P(magic);
  *n = as<typename P::IntVec>(shifted.v) - bit_cast<typename P::Int>(magic);
  return shifted - P(magic);
}

// 2^n for a normal result.
template <class P>
GF_HD P exp2_int(typename P::IntVec n) {
  using L = Limits<scalar_t<P>>;
  return as<typename P::Vec>((n + L::exponent_bias) << L::mantissa_bits);
}

// e^r - 1 for |r| <= ln(2) / 2 by its Taylor series; the first term left out is below half an ulp of the result.
template <int N>
GF_HD Pack<float, N> expm1_series(Pack<float, N> r) {
  using P = Pack<float, N>;
  P p(1.0f / 5040);
  p = fma(p, r, P(1.0f / 720));
  p = fma(p, r, P(1.0f / 120));
  p = fma(p, r, P(1.0f / 24));
  p = fma(p, r, P(1.0f / 6));
  p = fma(p, r, P(0.5f));
  return fma(p * r, r, r);
}
template <int N>
GF_HD Pack<double, N> expm1_series(Pack<double, N> r) {
  using P = Pack<double, N>;
  P p(1.0 / 6227020800.0);  // 1 / 13!
  p = fma(p, r, P(1.0 / 479001600));
  p = fma(p, r, P(1.0 / 39916800));
  p = fma(p, r, P(1.0 / 3628800));
  p = fma(p, r, P(1.0 / 362880));
  p = fma(p, r, P(1.0 / 40320));
  p = fma(p, r, P(1.0 / 5040));
  p = fma(p, r, P(1.0 / 720));
  p = fma(p, r, P(1.0 / 120));
  p = fma(p, r, P(1.0 / 24));
  p = fma(p, r, P(1.0 / 6));
  p = fma(p, r, P(0.5));
  return fma(p * r, r, r);
}

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  // ln 2 = hi + lo with n hi exact for every exponent n; the range in which the result is neither 0 nor infinity.
  static constexpr float hi = 0.693359375f, lo = -2.12194440054690583e-4f, log2e = 1.44269504088896341f,
                         lowest = -104.5f, highest = 89.0f, half_range = 10.0f;
};
template <>
struct ExpConstants<double> {
  static constexpr double hi = 6.93147180369123816490e-1, lo = 1.90821492927058770002e-10,
                          log2e = 1.44269504088896340736, lowest = -746.0, highest = 710.0, half_range = 22.0;
};

// x = n ln 2 + r; returns r.
template <class T, int N>
GF_HD Pack<T, N> exp_reduce(Pack<T, N> x, typename Pack<T, N>::IntVec* n) {
  using P = Pack<T, N>;
  using C = ExpConstants<T>;
  const P k = round_to_int(x * P(C::log2e), n);
  return (x - k * P(C::hi)) - k * P(C::lo);
}

template <class T, int N>
GF_HD Pack<T, N> exp(Pack<T, N> x) {
  using P = Pack<T, N>;
  using C = ExpConstants<T>;
  const P clamped = min(P(C::highest), max(P(C::lowest), x));
  typename P::IntVec n;
  const P p = expm1_series(exp_reduce(clamped, &n)) + P(1);
  // In two factors, so that subnormal results and infinity come out by ordinary rounding.
  const typename P::IntVec half = n >> 1;
  return p * exp2_int<P>(half) * exp2_int<P>(n - half);
}

template <class T, int N>
GF_HD Pack<T, N> expm1(Pack<T, N> x) {
  using P = Pack<T, N>;
  using C = ExpConstants<T>;
  const P clamped = min(P(C::highest), max(P(-2 * C::half_range), x));
  typename P::IntVec n;
  const P q = expm1_series(exp_reduce(clamped, &n));
  // 2^n (q + 1) - 1 with the large terms first; 2^n as 2 * 2^(n-1) because 2^128 has no float.
  const P s = exp2_int<P>(n - 1);
  return P(2) * fma(s, q, s - P(0.5));
}

// (atanh(s) / s - 1) / s^2 by series, for s^2 <= 0.0295.
template <int N>
GF_HD Pack<float, N> atanh_tail(Pack<float, N> z) {
  using P = Pack<float, N>;
  P p(1.0f / 11);
  p = fma(p, z, P(1.0f / 9));
  p = fma(p, z, P(1.0f / 7));
  p = fma(p, z, P(1.0f / 5));
  return fma(p, z, P(1.0f / 3));
}
template <int N>
GF_HD Pack<double, N> atanh_tail(Pack<double, N> z) {
  using P = Pack<double, N>;
  P p(1.0 / 23);
  p = fma(p, z, P(1.0 / 21));
  p = fma(p, z, P(1.0 / 19));
  p = fma(p, z, P(1.0 / 17));
  p = fma(p, z, P(1.0 / 15));
  p = fma(p, z, P(1.0 / 13));
  p = fma(p, z, P(1.0 / 11));
  p = fma(p, z, P(1.0 / 9));
  p = fma(p, z, P(1.0 / 7));
  p = fma(p, z, P(1.0 / 5));
  return fma(p, z, P(1.0 / 3));
}

// log x for x = 2^e m, m in [sqrt 1/2, sqrt 2): with f = m - 1 and s = f / (2 + f), log m = 2 atanh s
// = f - s (f - 2 s^2 tail), the form that loses nothing when f is small. `correction` is added before the large term.
template <class T, int N>
GF_HD Pack<T, N> log_normal(Pack<T, N> x, Pack<T, N> correction) {
  using P = Pack<T, N>;
  using I = typename P::IntVec;
  using L = Limits<T>;
  using Int = typename P::Int;
  const Int sqrt_half = bit_cast<Int>(static_cast<T>(0.70710678118654752440));
  const I bits = as<I>(x.v) - sqrt_half;
  const I e = bits >> L::mantissa_bits;
  const Int mantissa_mask = (Int(1) << L::mantissa_bits) - 1;
  const I m_bits = (bits & mantissa_mask) + sqrt_half;
  const P f = P(as<typename P::Vec>(m_bits)) - P(1);
  const P s = f / (P(2) + f);
  const P z = s * s;
  const P k = Pack<T, N>(__builtin_convertvector(e, typename P::Vec));
  const P tail = s * (f - P(2) * z * atanh_tail(z));
  return k * P(ExpConstants<T>::hi) + (f - (tail - (k * P(ExpConstants<T>::lo) + correction)));
}

template <class T, int N>
GF_HD Pack<T, N> log(Pack<T, N> x) {
  using P = Pack<T, N>;
  using L = Limits<T>;
  const P scale = static_cast<T>(typename P::Int(1) << (L::mantissa_bits + 1));
  const auto tiny = x < P(L::min_normal);
  const P shift = P(-(L::mantissa_bits + 1) * static_cast<T>(0.69314718055994530942));
  P r = log_normal(select(tiny, x * scale, x), P(0));
  r = select(tiny, r + shift, r);
  r = select(x == P(0), P(-__builtin_inf()), r);
  // x - x is 0 for finite x, NaN for infinity and NaN; x + x keeps infinity and NaN.
  r = select(x > P(L::max), x, r);
  return select(x >= P(0), r, P(__builtin_nan("")));
}

template <class T, int N>
GF_HD Pack<T, N> log1p(Pack<T, N> x) {
  using P = Pack<T, N>;
  using L = Limits<T>;
  const P u = x + P(1);
  // u rounds 1 + x; the part of x that it lost enters to first order, d log u = du / u.
  const P lost = select(abs(x) < P(1), x - (u - P(1)), P(1) - (u - x));
  P r = log_normal(u, lost / u);
  r = select(u <= P(0), select(u == P(0), P(-__builtin_inf()), P(__builtin_nan(""))), r);
  r = select(x > P(L::max), x, r);
  return select(x == x, r, x);
}

// tanh |x| = E / (E + 2), E = expm1(2 |x|); beyond half_range it is 1 in this precision.
template <class T, int N>
GF_HD Pack<T, N> tanh(Pack<T, N> x) {
  using P = Pack<T, N>;
  const P y = min(P(ExpConstants<T>::half_range), abs(x));
  const P e = expm1(y + y);
  const P t = e / (e + P(2));
  return select(x < P(0), -t, select(x > P(0), t, x));  // keeps -0 and NaN
}

template <int N>
GF_HD Pack<double, N> atan(Pack<double, N> x) {
  for (int i = 0; i < N; ++i) x.v[i] = ::atan(x.v[i]);
  return x;
}
// |x| is brought into [0, tan(pi/8)] by atan x = pi/2 - atan(1/x) and atan x = pi/4 + atan((x - 1)/(x + 1)).
template <int N>
GF_HD Pack<float, N> atan(Pack<float, N> x) {
  using P = Pack<float, N>;
  const P a = abs(x);
  const auto big = a > P(2.414213562373095f);
  const auto mid = a > P(0.4142135623730950f);
  const P num = select(big, P(-1), select(mid, a - P(1), a));
  const P den = select(big, a, select(mid, a + P(1), P(1)));
  const P base = select(big, P(1.57079632679489662f), select(mid, P(0.785398163397448310f), P(0)));
  const P t = num / den;
  const P z = t * t;
  P p(8.05374449538e-2f);
  p = fma(p, z, P(-1.38776856032e-1f));
  p = fma(p, z, P(1.99777106478e-1f));
  p = fma(p, z, P(-3.33329491539e-1f));
  const P r = base + fma(p * z, t, t);
  return select(x < P(0), -r, r);
}

#endif  // !__CUDACC__

// --- compositions, for every Real ---

template <class R>
GF_HD R softplus(R x) {
  return max(x, R(0)) + log1p(exp(-abs(x)));
}

template <class R>
GF_HD R sigmoid(R x) {
  const R z = exp(-abs(x));
  const R s = R(1) / (R(1) + z);
  return select(x >= R(0), s, z * s);
}

}  // namespace GF_BACKEND
}  // namespace gf
