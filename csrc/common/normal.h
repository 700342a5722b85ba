// The tail of the normal distribution, for every Real, without under- or overflow.
#pragma once

#include "real.h"

namespace gf {
inline namespace GF_BACKEND {

constexpr double kLogSqrtTwoPi = 0.91893853320467274178, kInvSqrtTwoPi = 0.39894228040143267794;

// (a + 4) e^(a^2 / 2) Phi(-a) by its Chebyshev series in t = (a - 4) / (a + 4), as powers of t: it is smooth from a =
// 0, where it is 2, to infinity, where it is 1 / sqrt(2 pi). Terms left out are below 3e-9 and 4e-18.
template <class R>
GF_HD R normal_tail_series(R t, float) {
  constexpr float c[] = {0.75528513f,     -0.607896631f,   0.387137402f,   -0.18652216f,   0.0603965535f,
                         -0.00753771716f, -0.00347955027f, 0.00162204011f, 1.32873534e-4f, -2.15573776e-4f,
                         -1.03787913e-6f, 2.11829843e-5f,  -2.31067722e-7f};
  R p(c[12]);
  for (int i = 11; i >= 0; --i) p = fma(p, t, R(c[i]));
  return p;
}
template <class R>
GF_HD R normal_tail_series(R t, double) {
  constexpr double c[] = {
      0.755285130415751492,    -0.607896641971892125,   0.387137400742214917,    -0.186521857959654829,
      0.0603965748909178723,   -0.00754018896682523998, -0.00347969236704797363, 0.00163081845939458598,
      1.33344309411832544e-4,  -2.31094953240194385e-4, -1.90824635141457105e-6, 3.51447947875335531e-5,
      7.16658764119512099e-7,  -5.92058651955689084e-6, -6.29836733849236905e-7, 1.02256041582960377e-6,
      2.72462969511458721e-7,  -1.56502364619931066e-7, -8.68664701599789276e-8, 1.46307274056511747e-8,
      2.14276038434523559e-8,  1.43299184010886129e-9,  -3.73064508186837028e-9, -8.54652189988014714e-10,
      3.40331230864949465e-10, 1.17547899148077403e-10};
  R p(c[25]);
  for (int i = 24; i >= 0; --i) p = fma(p, t, R(c[i]));
  return p;
}

// e^(a^2 / 2) Phi(-a) for a >= 0, which is erfcx(a / sqrt 2) / 2.
template <class R>
GF_HD R normal_tail(R a) {
  const R u = R(1) / (a + R(4)), w = min(a * u, R(1));
  // t to full accuracy at either end
  const R t = select(w < R(0.5), fma(R(2), w, R(-1)), fma(R(-8), u, R(1)));
  return u * normal_tail_series(t, scalar_t<R>(0));
}

// The a >= 0 of log Phi(-a) = log_p <= log 1/2. A rational start (Abramowitz & Stegun 26.2.23, off by 4.5e-4) and
// Halley steps on f = log Phi(-a) - log_p, with f' = -1 / m and f'' = -f' (a + f'), m = Phi(-a) / phi(a).
template <class R>
GF_HD R normal_tail_quantile(R log_p) {
  using T = scalar_t<R>;
  const R t = sqrt(R(-2) * log_p);
  const R num = fma(t, fma(t, R(T(0.010328)), R(T(0.802853))), R(T(2.515517)));
  const R den = fma(t, fma(t, fma(t, R(T(0.001308)), R(T(0.189269))), R(T(1.432788))), R(1));
  R a = max(R(0), t - num / den);
  for (int step = 0; step < (sizeof(T) == 4 ? 1 : 2); ++step) {
    const R tail = normal_tail(a), slope = R(T(-kInvSqrtTwoPi)) / tail;
    const R f = fma(R(T(-0.5)) * a, a, log(tail)) - log_p;
    const R newton = f / slope, bend = R(-1) / (a + R(T(1.2533)));
    a = a - newton / fma(R(T(0.5)) * newton, bend, R(1));
  }
  return max(R(0), a);
}

}  // namespace GF_BACKEND
}  // namespace gf
