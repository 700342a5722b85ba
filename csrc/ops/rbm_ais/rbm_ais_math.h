// What a hidden unit adds to a run's log-weight, to the last bit on every backend: float32 operations that are
// correctly rounded and in a fixed order, as in gibbs.h.
//
// From beta0 to beta1 = beta0 + d a unit of field x adds softplus(beta1 x) - softplus(beta0 x) = d y with y = x g,
// where g is the mean of the logistic function s between z - dz and z = beta1 x, dz = d x. The difference itself would
// lose all digits for steps of 1e-5. Where |dz| <= 1/8, with s' = s (1 - s) and c = 1 - 2 s,
//   g = s - s' dz (1/2 - c dz / 6 + (1 - 6 s') dz^2 / 24 - c (1 - 12 s') dz^3 / 120)
// up to 1e-8, by the derivatives of s. Elsewhere, with l(z) = log(1 + exp(-|z|)), since both ends have the sign of x,
//   g = [x > 0] + (l(z) - l(z - dz)) / dz.
// y is rounded to a multiple of 2^(e + 1), twice the unit of the fields: so sums over units are exact in any order, and
// the log-weights do not depend on how they are formed.
#pragma once

#include "common/gibbs.h"
#if !defined(__CUDACC__)
#include "common/gibbs_lanes.h"
#endif

namespace gf {
inline namespace GF_BACKEND {

#if defined(__CUDA_ARCH__)
GF_HD float rounded_div(float a, float b) { return __fdiv_rn(a, b); }
GF_HD double rounded_mul(double a, double b) { return __dmul_rn(a, b); }
GF_HD double rounded_add(double a, double b) { return __dadd_rn(a, b); }
#else
template <class F>
GF_HD F rounded_div(F a, F b) {
  return a / b;
}
#endif

GF_HD bool any_lane(bool on) { return on; }
#if !defined(__CUDACC__)
GF_HD bool any_lane(IntLanes on) { return lane_bits(on) != 0; }
#endif

// The scale of the fields, with a limit for which beta x is finite.
GF_HD float ais_scale(int e) { return power_of_two<float>(e < 96 ? e : 96); }

// log(1 + t), 0 <= t <= 1, within 1e-7: 2 atanh(s) with s = t / (2 + t).
template <class L>
GF_HD typename L::F log1p_unit(typename L::F t) {
  using F = typename L::F;
  const F s = rounded_div(t, rounded_add(t, L::splat(2.0f)));
  const F u = rounded_mul(s, s);
  F q = rounded_add(rounded_mul(L::splat(0.28024464f), u), L::splat(0.279991401f));
  q = rounded_add(rounded_mul(q, u), L::splat(0.400216991f));
  q = rounded_add(rounded_mul(q, u), L::splat(0.666664131f));
  return rounded_add(rounded_mul(rounded_mul(q, u), s), rounded_add(s, s));
}

// y in units of 2^(e + 1), from x = field * scale and t = exp(-beta1 |x|).
template <class L>
GF_HD typename L::I ais_increment(typename L::I field, float scale, typename L::F t, float beta0, float step) {
  using F = typename L::F;
  const F zero = L::splat(0.0f), one = L::splat(1.0f), limit = L::splat(0.125f);
  const auto mul = [](F a, F b) { return rounded_mul(a, b); };
  const auto add = [](F a, F b) { return rounded_add(a, b); };
  const F number = L::to_float(field);
  const F x = mul(number, L::splat(scale)), dz = mul(x, L::splat(step));
  const auto positive = L::greater(x, zero);

  const F w = rounded_div(one, add(one, t)), tw = mul(t, w);
  const F s = positive ? w : tw, other = positive ? tw : w;
  const F slope = mul(s, other), c = add(other, -s);
  F p = mul(mul(c, add(one, mul(slope, L::splat(-12.0f)))), L::splat(-1.0f / 120));
  p = add(mul(p, dz), mul(add(one, mul(slope, L::splat(-6.0f))), L::splat(1.0f / 24)));
  p = add(mul(p, dz), mul(c, L::splat(-1.0f / 6)));
  p = add(mul(p, dz), L::splat(0.5f));
  F g = add(s, -mul(mul(slope, dz), p));

  const auto far = L::greater(dz > zero ? dz : -dz, limit);
  if (any_lane(far)) {
    const F from = odds_against<L>(mul(x, L::splat(beta0)));
    const F gap = add(log1p_unit<L>(t), -log1p_unit<L>(from));
    const F mean = add(positive ? one : zero, rounded_div(gap, far ? dz : one));
    g = far ? mean : g;
  }
  return round_even(mul(mul(number, L::splat(0.5f)), g));
}

// The log-weight after a step d of beta: `sum` of y over the hidden units, in units of 2^(e + 1), and `slopes`, that of
// a - base over the active visible units.
GF_HD double ais_log_weight(double log_weight, double d, int64_t sum, double unit, int64_t slopes, double slope_unit) {
  const double rate =
      rounded_add(rounded_mul(static_cast<double>(sum), unit), rounded_mul(static_cast<double>(slopes), slope_unit));
  return rounded_add(log_weight, rounded_mul(d, rate));
}

// The logit of a visible unit with the log-odds `offset` = (1 - beta) base beside its field.
template <class L>
GF_HD typename L::F ais_visible_logit(typename L::I field, float scale, typename L::F beta, typename L::F offset) {
  return rounded_add(rounded_mul(rounded_mul(L::to_float(field), L::splat(scale)), beta), offset);
}

}  // namespace GF_BACKEND
}  // namespace gf
