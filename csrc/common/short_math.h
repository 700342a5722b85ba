// e^x, log x and log(1 + z) on the ranges that softmax and logistic functions need them on, for float packs shorter
// than those of real.h: no overflow, no special values but NaN, which comes out as NaN.
#pragma once

#include "real.h"

namespace gf {
inline namespace GF_BACKEND {

// e^x for x <= 87; what is smaller than 1e-38 comes out as about that.
template <class R>
GF_HD R exp_short(R x) {
  return exp(x);
}

// log x for normal positive x.
template <class R>
GF_HD R log_short(R x) {
  return log(x);
}

// log(1 + z) for 0 <= z <= 1.
template <class R>
GF_HD R log1p_short(R z) {
  return log1p(z);
}

#if !defined(__CUDACC__)

// 2^f for |f| <= 1/2, relative error 2e-9.
template <int N>
GF_HD Pack<float, N> exp2_series(Pack<float, N> f) {
  using P = Pack<float, N>;
  P p(1.5353362e-4f);
  p = fma(p, f, P(1.33988746e-3f));
  p = fma(p, f, P(9.61843736e-3f));
  p = fma(p, f, P(5.55033247e-2f));
  p = fma(p, f, P(0.240226479f));
  p = fma(p, f, P(0.693147203f));
  return fma(p, f, P(1));
}

template <int N>
GF_HD Pack<float, N> exp_short(Pack<float, N> x) {
  using P = Pack<float, N>;
  const P t = max(P(-125), x * P(ExpConstants<float>::log2e));
#if defined(__AVX512F__)
  if constexpr (N == 16) {
    // with a mask of ones, because g++ 12 warns of an uninitialised value inside the plain intrinsics
    const __mmask16 all = 0xffff;
    const __m512 k = _mm512_maskz_roundscale_ps(all, (__m512)t.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const P p = exp2_series(t - P((typename P::Vec)k));
    return P((typename P::Vec)_mm512_maskz_scalef_ps(all, (__m512)p.v, k));
  }
#endif
  typename P::IntVec n;
  const P k = round_to_int(t, &n);
  return exp2_series(t - k) * exp2_int<P>(n);
}

template <int N>
GF_HD Pack<float, N> log_short(Pack<float, N> x) {
  return log_normal(x, Pack<float, N>(0)) + (x - x);  // + 0, or NaN
}

// 2 atanh s, s = z / (2 + z) <= 1/3: s (2 + s^2 q(s^2)), relative error 5e-9.
template <int N>
GF_HD Pack<float, N> log1p_short(Pack<float, N> z) {
  using P = Pack<float, N>;
  const P s = z / (P(2) + z);
  const P u = s * s;
  P q(0.28024464f);
  q = fma(q, u, P(0.279991401f));
  q = fma(q, u, P(0.400216991f));
  q = fma(q, u, P(0.666664131f));
  return fma(q * u, s, s + s);
}

#endif

}  // namespace GF_BACKEND
}  // namespace gf
