// The CDF F(x) = sum_k pi_k G(u_k) of a mixture, u_k = (x - mu_k) e^{-s_k}, pi = softmax(l), with G the logistic or the
// normal CDF and g its density; its log-density log p; and F as probability, as logit log F - log(1 - F) (Flow++, Ho et
// al. 2019) or, of normal mixtures, as probit Phi^{-1}(F). One number at a time, with adjoint and inverse.
//
// No output is a difference of what is nearly equal. Of the two tails F and S = 1 - F, `small` is the lesser one and
// `big` the other, each a sum of positive terms of its own: G(-|u|) = E M and G(|u|), with E = e^{-|u|}, M = 1 / (1 +
// E) for the logistic, and E = e^{-u^2/2}, M = e^{u^2/2} Phi(-|u|) for the normal distribution; g = E N. Then
//   logit = -+ log(small / big),  log p = log(sum_k pi_k e^{-s_k} g_k),
//   log dlogit/dx = log(p / (F S)) = log((p / small) / big),  log dprobit/dx = log(p / phi(y)) = log((p / small)
//   m(|y|)),
// where m(a) = Phi(-a) / phi(a), as small = Phi(-|y|): in the tails p / small has a limit, and nothing cancels. Where
// all terms of small or of p underflow (`deep`), they are summed again in units of e^A and e^B, near the largest.
//
// Adjoint. With t_k = pi_k g_k / (F S), so that dlogit/du_k = t_k, rho_k = pi_k e^{-s_k} g_k / p and tau = d log g / du
// (-tanh(u/2) or -u), D = dlogit/dx = sum_k t_k e^{-s_k}, and l the cotangent of the log-derivative,
//   dL/du_k = U_k = Q t_k + l rho_k tau_k,   dL/dmu_k = -U_k e^{-s_k},   dL/ds_k = -(U_k u_k + l rho_k),
//   dL/dl_k = Q (pi_k G_k / F - pi_k (1 - G_k) / S) + l (rho_k - pi_k),   dL/dx = sum_k U_k e^{-s_k} = Q D + l T,
// T = sum_k rho_k tau_k e^{-s_k}. Q is what reaches the logit: with v the cotangent of the output and q = small,
//   logit  Q = v + l (F - S),   probability  Q = v F S,   probit  Q = (v + l y) F S / phi(y) = (v + l y) big m(|y|).
// For all three Q = v Q_v + l Q_l, so dy/dx = Q_v D and dlog_det/dx = Q_l D + T.
//
// Adjoint of the inverse y -> (x, -log_det), with cotangents x' and m' (implicit function theorem): c = x' - m' (Q_l D
// + T) reaches x, c / (Q_v D) the argument, and the parameters get what the adjoint gives for v = -c / (Q_v D), l =
// -m', that is Q = -c / D - m' Q_l.
//
// The inverse: the components' own inverses mu_k + e^{s_k} G^{-1}(y) bracket the root, their mean by weight is the
// start. Newton's method on the logit, which is nearly linear where the mixture is smooth and, unlike F, nowhere flat
// in the tails; where a step leaves the bracket or does not halve the residual, the bracket is halved, and at last
// halved in the number of floats that it holds, which comes to an end whatever the parameters are.
#pragma once

#include "common/normal.h"
#include "common/short_math.h"
#include "ops/mixture_cdf/mixture_cdf.h"

// Compiled once for all who use it, where code is large.
#if defined(__CUDACC__)
#define MIXTURE_PIECE __device__ __forceinline__
#else
#define MIXTURE_PIECE GF_NOINLINE
#endif

namespace gf {
inline namespace GF_BACKEND {

// Scales are limited to e^-24 ... e^24 and distances in units of them to 1e12, so that no product below overflows.
constexpr double kMostLogScale = 24, kMostDistance = 1e12;

template <class T>
struct MixtureLimits;
template <>
struct MixtureLimits<float> {
  // E below e^-86 counts as 0; below these a sum has lost terms that matter.
  static constexpr float exponent = 86, small = 1e-30f, density = 1e-13f;
  static constexpr float least_rate = 1e-30f;  // a derivative that is divided by
  static constexpr float most_logit = 1e30f;
};
template <>
struct MixtureLimits<double> {
  static constexpr double exponent = 700, small = 1e-280, density = 1e-250;
  static constexpr double least_rate = 1e-200;
  static constexpr double most_logit = 1e30;
};

template <class R>
GF_HD R clamp(R x, double most) {
  using T = scalar_t<R>;
  return min(R(T(most)), max(R(T(-most)), x));  // NaN stays NaN
}

// A component as the mixture is evaluated with: its logit minus the greatest one, e to the power of that, its mean, and
// e^{-s}.
template <class R>
struct MixtureComponent {
  R logit, weight, mean, scale;
};

template <class R>
GF_HD MixtureComponent<R> mixture_component(R logit, R top, R mean, R log_scale) {
  const R l = logit - top;
  return {l, exp_short(l), mean, exp_short(-clamp(log_scale, kMostLogScale))};
}

template <class R>
struct MixtureShape {
  R exponent, e, factor, upper, density;  // -log E, E, M, G(|u|), N
};

template <bool kNormal, class R>
GF_HD MixtureShape<R> mixture_shape(R u) {
  using T = scalar_t<R>;
  const R a = abs(u);
  MixtureShape<R> f;
  f.exponent = kNormal ? R(T(0.5)) * a * a : a;
  f.e = select(f.exponent > R(MixtureLimits<T>::exponent), R(0), exp_short(-f.exponent));
  if constexpr (kNormal) {
    f.factor = normal_tail(a);
    f.upper = R(1) - f.e * f.factor;
    f.density = R(T(kInvSqrtTwoPi));
  } else {
    f.factor = f.upper = R(1) / (R(1) + f.e);
    f.density = f.factor * f.factor;
  }
  return f;
}

// tau(u) = d log g / du.
template <bool kNormal, class R>
GF_HD R mixture_log_slope(R u, const MixtureShape<R>& f) {
  if constexpr (kNormal) return -u;
  const R t = (R(1) - f.e) * f.factor;
  return select(u < R(0), t, -t);
}

template <class R>
struct MixtureSums {
  decltype(R() < R()) low;   // F is the lesser tail
  decltype(R() < R()) deep;  // summed in units near the largest term
  bool any_deep;
  R total;                 // of the weights
  R small, big;            // tails times total; small in units of e^shift
  R density, slope;        // p and p T times total, in units of e^density_shift
  R shift, density_shift;  // A, B
};

// The numbers of component k at x. A lane's weight of the small tail in units of e^A, and of the density (without
// e^{-s}) in units of e^B.
template <class R>
struct MixtureTerm {
  R u, scale, weight, tau;
  R small, big, density;
};

// Whether the argument lies on the side of the lesser tail, u < 0 where that is F.
template <class M, class R>
GF_HD M mixture_outside(M low, R u) {
  return (low & (u < R(0))) | ((!low) & (u > R(0)));
}

template <bool kNormal, class R>
GF_HD MixtureTerm<R> mixture_term(const MixtureComponent<R>& c, R x, const MixtureSums<R>& s) {
  MixtureTerm<R> t;
  t.u = clamp((x - c.mean) * c.scale, kMostDistance);
  t.scale = c.scale;
  t.weight = c.weight;
  const MixtureShape<R> f = mixture_shape<kNormal>(t.u);
  t.tau = mixture_log_slope<kNormal>(t.u, f);
  const auto outside = mixture_outside(s.low, t.u);
  const R lower = c.weight * f.e * f.factor, upper = c.weight * f.upper;
  t.small = select(outside, lower, upper);
  t.big = select(outside, upper, lower);
  t.density = c.weight * f.e * f.density;
  if (s.any_deep) {
    const R a = c.logit - select(outside, f.exponent, R(0)) - s.shift, b = c.logit - f.exponent - s.density_shift;
    t.small = select(s.deep, exp_short(a) * select(outside, f.factor, f.upper), t.small);
    t.density = select(s.deep, exp_short(b) * f.density, t.density);
  }
  return t;
}

// Of all components. A kSlope sum has T too.
template <bool kNormal, bool kSlope, class Components, class R>
MIXTURE_PIECE void mixture_sums(const Components& c, R x, MixtureSums<R>* out) {
  using T = scalar_t<R>;
  MixtureSums<R> s;
  R below(0), above(0), density(0), slope(0);
  for (int k = 0; k < c.count; ++k) {
    const MixtureComponent<R> one = c[k];
    const R u = clamp((x - one.mean) * one.scale, kMostDistance);
    const MixtureShape<R> f = mixture_shape<kNormal>(u);
    const R lower = one.weight * f.e * f.factor, upper = one.weight * f.upper;
    const auto left = u < R(0);
    below += select(left, lower, upper);
    above += select(left, upper, lower);
    const R p = one.weight * f.e * f.density * one.scale;
    density += p;
    if (kSlope) slope = fma(p * one.scale, mixture_log_slope<kNormal>(u, f), slope);
  }
  s.total = c.total;
  s.low = below < above;
  s.small = select(s.low, below, above);
  s.big = select(s.low, above, below);
  s.density = density;
  s.slope = slope;
  s.shift = s.density_shift = R(0);
  s.deep = (s.small < R(MixtureLimits<T>::small)) | (s.density < R(MixtureLimits<T>::density));
  s.any_deep = any(s.deep);
  if (s.any_deep) {
    R most(-Limits<T>::max), most_density(-Limits<T>::max);
    for (int k = 0; k < c.count; ++k) {
      const MixtureComponent<R> one = c[k];
      const R u = clamp((x - one.mean) * one.scale, kMostDistance);
      const R exponent = kNormal ? R(T(0.5)) * u * u : abs(u);
      most = max(most, one.logit - select(mixture_outside(s.low, u), exponent, R(0)));
      most_density = max(most_density, one.logit - exponent + log_short(one.scale));
    }
    s.shift = select(s.deep, most, R(0));
    s.density_shift = select(s.deep, most_density, R(0));
    R small(0);
    density = slope = R(0);
    for (int k = 0; k < c.count; ++k) {
      const MixtureTerm<R> t = mixture_term<kNormal>(c[k], x, s);
      small += t.small;
      const R p = t.density * t.scale;
      density += p;
      if (kSlope) slope = fma(p * t.scale, t.tau, slope);
    }
    s.small = select(s.deep, small, s.small);
    s.density = select(s.deep, density, s.density);
    s.slope = select(s.deep, slope, s.slope);
  }
  *out = s;
}

// e^{B - A}, 1 where nothing is deep.
template <class R>
GF_HD R mixture_unit(const MixtureSums<R>& s) {
  return s.any_deep ? exp_short(s.density_shift - s.shift) : R(1);
}

template <class R>
GF_HD R mixture_logit(const MixtureSums<R>& s) {
  const R ratio = log(s.small / s.big) + s.shift;
  return select(s.low, ratio, -ratio);
}

// dlogit/dx.
template <class R>
GF_HD R mixture_rate(const MixtureSums<R>& s) {
  return (s.density / s.small) * (s.total / s.big) * mixture_unit(s);
}

template <class R>
GF_HD R mixture_log_small(const MixtureSums<R>& s) {
  return min(R(scalar_t<R>(-0.69314718055994530942)), log(s.small / s.total) + s.shift);
}

template <class R>
struct MixturePoint {
  R y, log_det;
};

template <class R>
GF_HD MixturePoint<R> mixture_point(const MixtureSums<R>& s, MixtureOutput output) {
  using T = scalar_t<R>;
  MixturePoint<R> p;
  if (output == MixtureOutput::probability) {
    const R small = s.any_deep ? s.small / s.total * exp(s.shift) : s.small / s.total;
    p.y = select(s.low, small, R(1) - small);
    p.log_det = log(s.density / s.total) + s.density_shift;
    return p;
  }
  const R hazard = s.density / s.small, shift = s.density_shift - s.shift;
  if (output == MixtureOutput::logit) {
    p.y = mixture_logit(s);
    p.log_det = log(hazard * (s.total / s.big)) + shift;
  } else {
    const R a = normal_tail_quantile(mixture_log_small(s));
    p.y = select(s.low, -a, a);
    p.log_det = log(hazard * normal_tail(a)) + shift + R(T(kLogSqrtTwoPi));
  }
  return p;
}

// Q = v by_output + l by_log_det.
template <class R>
struct MixturePull {
  R by_output, by_log_det;
};

template <class R>
GF_HD MixturePull<R> mixture_pull(const MixtureSums<R>& s, MixtureOutput output) {
  using T = scalar_t<R>;
  const R q = s.any_deep ? s.small / s.total * exp(s.shift) : s.small / s.total, other = R(1) - q;
  if (output == MixtureOutput::probability) return {q * other, R(0)};
  if (output == MixtureOutput::logit) return {R(1), select(s.low, q - other, other - q)};
  const R a = normal_tail_quantile(mixture_log_small(s));
  const R pull = other * normal_tail(a) * R(T(1 / kInvSqrtTwoPi));
  return {pull, pull * select(s.low, -a, a)};
}

// The gradient of the argument, and what the gradients of the parameters are made of.
template <class R>
struct MixtureAdjoint {
  R argument;
  R pull, log_det;                   // Q, l
  R of_term, of_density, of_weight;  // Q t_k and l rho_k over a term's density, l pi_k over its weight
  R of_small, of_big;                // Q pi_k G_k / F and Q pi_k (1 - G_k) / S over a term's small and big, with signs
};

template <class R>
GF_HD MixtureAdjoint<R> mixture_adjoint(const MixtureSums<R>& s, const MixtureOptions& o, R grad_y, R grad_log_det) {
  using T = scalar_t<R>;
  const MixturePull<R> pull = mixture_pull(s, o.output);
  const R rate = mixture_rate(s), slope = fma(pull.by_log_det, rate, s.slope / s.density);
  MixtureAdjoint<R> a;
  if (o.inverse) {
    const R c = fma(-grad_log_det, slope, grad_y);
    const R back = clamp(c / max(R(MixtureLimits<T>::least_rate), rate), 1 / MixtureLimits<T>::least_rate);
    a.argument = clamp(back / max(R(MixtureLimits<T>::least_rate), pull.by_output), Limits<T>::max);
    a.pull = -fma(grad_log_det, pull.by_log_det, back);
    a.log_det = -grad_log_det;
  } else {
    a.argument = fma(grad_y * pull.by_output, rate, grad_log_det * slope);
    a.pull = fma(grad_y, pull.by_output, grad_log_det * pull.by_log_det);
    a.log_det = grad_log_det;
  }
  a.of_term = (a.pull / s.small) * (s.total / s.big) * mixture_unit(s);
  a.of_density = a.log_det / s.density;
  a.of_weight = a.log_det / s.total;
  const R sign = select(s.low, R(1), R(-1));
  a.of_small = sign * a.pull / s.small;
  a.of_big = sign * a.pull / s.big;
  return a;
}

// The gradients of component k.
template <class R>
struct MixtureGradient {
  R logit, mean, log_scale;
};

template <class R>
GF_HD MixtureGradient<R> mixture_gradient(const MixtureTerm<R>& t, const MixtureAdjoint<R>& a) {
  const R share = a.of_density * t.density * t.scale;
  const R u = fma(a.of_term, t.density, share * t.tau);
  MixtureGradient<R> g;
  g.mean = -u * t.scale;
  g.log_scale = -fma(u, t.u, share);
  g.logit = fma(a.of_small, t.small, fma(-a.of_big, t.big, fma(-a.of_weight, t.weight, share)));
  return g;
}

// --- the inverse ---

// What the inverse solves for: the logit, and the components' own quantile of it. A probability outside [0, 1] is NaN,
// and 0 and 1, to which F rounds in the tails, stand for the numbers next to them.
template <class R>
struct MixtureTarget {
  R logit, quantile;
  decltype(R() < R()) inside;  // whether the target moves with the argument
};

template <bool kNormal, class R>
GF_HD MixtureTarget<R> mixture_target(R v, MixtureOutput output) {
  using T = scalar_t<R>;
  MixtureTarget<R> t;
  if (output == MixtureOutput::probability) {
    const R least(Limits<T>::min_normal), most(T(1) - Limits<T>::epsilon / 2);
    t.inside = (v >= least) & (v <= most);
    const R p = select((v >= R(0)) & (v <= R(1)), min(most, max(least, v)), R(T(__builtin_nanf(""))));
    t.logit = log(p / (R(1) - p));
  } else if (output == MixtureOutput::logit) {
    t.inside = abs(v) <= R(MixtureLimits<T>::most_logit);
    t.logit = clamp(v, MixtureLimits<T>::most_logit);
  } else {
    t.inside = abs(v) <= R(T(kMostDistance));
    t.quantile = clamp(v, kMostDistance);
    const R a = abs(t.quantile), log_small = fma(R(T(-0.5)) * a, a, log(normal_tail(a)));
    const R ratio = log_small - log1p(-exp(log_small));
    t.logit = select(v < R(0), ratio, -ratio);
    return t;
  }
  if constexpr (kNormal) {
    const R a = abs(t.logit);
    const R quantile = normal_tail_quantile(-a - log1p(exp(-a)));
    t.quantile = select(t.logit < R(0), -quantile, quantile);
  } else {
    t.quantile = clamp(t.logit, kMostDistance);
  }
  return t;
}

// The number with as many floats between it and a as between it and b.
GF_HD float middle_float(float a, float b) {
  const auto ordered = [](int32_t i) { return i ^ ((i >> 31) & 0x7fffffff); };
  const int32_t i = ordered(bit_cast<int32_t>(a)), j = ordered(bit_cast<int32_t>(b));
  return bit_cast<float>(ordered((i & j) + ((i ^ j) >> 1)));
}
GF_HD double middle_float(double a, double b) {
  const auto ordered = [](int64_t i) { return i ^ ((i >> 63) & 0x7fffffffffffffff); };
  const int64_t i = ordered(bit_cast<int64_t>(a)), j = ordered(bit_cast<int64_t>(b));
  return bit_cast<double>(ordered((i & j) + ((i ^ j) >> 1)));
}
#if !defined(__CUDACC__)
template <class T, int N>
GF_HD Pack<T, N> middle_float(Pack<T, N> a, Pack<T, N> b) {
  for (int i = 0; i < N; ++i) a.set(i, middle_float(a[i], b[i]));
  return a;
}
#endif

template <bool kNormal, class Components, class R>
MIXTURE_PIECE R mixture_solve(const Components& c, const MixtureTarget<R>& target) {
  using T = scalar_t<R>;
  constexpr int kNewton = 24, kMost = kNewton + 8 * sizeof(T) + 2;
  const R most(Limits<T>::max / 4), nan(T(__builtin_nanf("")));
  R low = most, high = -most, x(0);
  const R share = R(1) / c.total;
  for (int k = 0; k < c.count; ++k) {
    const MixtureComponent<R> one = c[k];
    const R own = clamp(one.mean + target.quantile / one.scale, Limits<T>::max / 4);
    const auto present = one.logit >= R(-Limits<T>::max);
    low = select(present, min(low, own), low);
    high = select(present, max(high, own), high);
    x = fma(one.weight * share, own, x);
  }
  const R tolerance = R(T(4) * Limits<T>::epsilon) * (R(1) + abs(target.logit));
  auto done = (x != x) | (target.logit != target.logit);
  x = min(high, max(low, x));
  R last(Limits<T>::max);
  for (int i = 0; i < kMost && !all(done); ++i) {
    MixtureSums<R> s;
    mixture_sums<kNormal, false>(c, x, &s);
    const R residual = mixture_logit(s) - target.logit, size = abs(residual);
    const auto rising = residual < R(0);
    low = select(rising, x, low);
    high = select(rising, high, x);
    const R step = x - residual / max(R(MixtureLimits<T>::least_rate), mixture_rate(s));
    const R middle = i < kNewton ? fma(R(T(0.5)), low, R(T(0.5)) * high) : middle_float(low, high);
    const auto within = (step > low) & (step < high);
    const auto close = size <= tolerance;
    const auto newton = within & (close | (size + size <= last));
    // no number is left between the bounds, or this one is near enough: it stays, or takes its last step
    const auto end = close | (middle <= low) | (middle >= high) | (size != size);
    const R next = select(newton, step, select(end, x, middle));
    const auto stays = end | (next == x);
    x = select(done, x, next);
    done = done | stays;
    last = size;
  }
  return select(target.logit == target.logit, x, nan);
}

}  // namespace GF_BACKEND
}  // namespace gf
