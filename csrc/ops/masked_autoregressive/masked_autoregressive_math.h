// The pieces of the inverse of a masked autoregressive transform that are formulas of single numbers.
//
// z = g(x; p(x)), where p_i, the parameters of number i, depend on numbers of smaller degree alone, is solved number by
// number: x_i = g^-1(z_i; p_i), and log|det dx/dz| is the sum of the maps' own. The network's part of the work is
// dot products (masked_autoregressive_plan.h has their order); here are activations and maps.
//
// The adjoint, in decreasing order of stages. Let X_i be the cotangent of x_i: the given one, and what comes through
// the first hidden layer. The map's adjoint at (z_i, p_i) takes X_i and the cotangent of log|det| to those of z_i and
// p_i; those of p_i go on to the hidden units that it sees. A hidden unit h = s(a), with a its sum, passes A = H s'(a)
// on, where H sums over its readers; with a residual connection a is also added to a later sum, whose cotangent joins
// A. The gradient of a weight is the sum over samples of A times what the weight multiplies.
#pragma once

#include "common/normal.h"
#include "ops/coupling/coupling_math.h"
#include "ops/masked_autoregressive/masked_autoregressive.h"
#include "ops/rq_spline/rq_spline_math.h"

namespace gf {
inline namespace GF_BACKEND {

// --- activations

// Phi(x), the share of a standard normal below x.
template <class R>
GF_HD R normal_below(R x) {
  using T = scalar_t<R>;
  const R a = abs(x), tail = exp(R(T(-0.5)) * a * a) * normal_tail(a);
  return select(x > R(0), R(1) - tail, tail);
}

// tanh(sqrt(2 / pi) (x + 0.044715 x^3)); x^2 past its largest does not matter and would overflow.
template <class R>
GF_HD R gelu_tanh_inner(R x) {
  using T = scalar_t<R>;
  const R y = max(R(-64), min(R(64), x));
  return tanh(R(T(0.79788456080286535588)) * fma(R(T(0.044715)) * y * y, y, y));
}

template <Activation kKind, class R>
GF_HD R activation(R x) {
  using T = scalar_t<R>;
  if constexpr (kKind == Activation::relu) return max(R(0), x);
  if constexpr (kKind == Activation::tanh) return tanh(x);
  if constexpr (kKind == Activation::elu) return select(x > R(0), x, expm1(x));
  if constexpr (kKind == Activation::gelu) return x * normal_below(x);
  if constexpr (kKind == Activation::gelu_tanh) return R(T(0.5)) * x * (R(1) + gelu_tanh_inner(x));
  if constexpr (kKind == Activation::silu) return x * sigmoid(x);
}

// Its derivative at x, where it is `value`.
template <Activation kKind, class R>
GF_HD R activation_slope(R x, R value) {
  using T = scalar_t<R>;
  const R half(T(0.5));
  if constexpr (kKind == Activation::relu) return select(x > R(0), R(1), select(x == x, R(0), x));
  if constexpr (kKind == Activation::tanh) return R(1) - value * value;
  if constexpr (kKind == Activation::elu) return select(x > R(0), R(1), value + R(1));
  if constexpr (kKind == Activation::gelu) {
    const R y = max(R(-64), min(R(64), x));
    return normal_below(x) + y * R(T(kInvSqrtTwoPi)) * exp(-half * y * y);
  }
  if constexpr (kKind == Activation::gelu_tanh) {
    const R t = gelu_tanh_inner(x), y = max(R(-64), min(R(64), x));
    const R inner = R(T(0.79788456080286535588)) * fma(R(T(3 * 0.044715)), y * y, R(1));
    return half * (R(1) + t) + half * y * (R(1) - t * t) * inner;
  }
  if constexpr (kKind == Activation::silu) {
    const R s = sigmoid(x);
    return s + value * (R(1) - s);
  }
}

// f(integral_constant of the activation)
template <class F>
GF_HD auto dispatch_activation(Activation kind, F&& f) {
#define GF_ACTIVATION(name) \
  case Activation::name:    \
    return f(std::integral_constant<Activation, Activation::name>{})
  switch (kind) {
    GF_ACTIVATION(tanh);
    GF_ACTIVATION(elu);
    GF_ACTIVATION(gelu);
    GF_ACTIVATION(gelu_tanh);
    GF_ACTIVATION(silu);
    default:
      return f(std::integral_constant<Activation, Activation::relu>{});
  }
#undef GF_ACTIVATION
}

// --- maps

template <class T>
struct MaskedConstants {
  bool is_spline, inverse;
  ScaleMap scale_map;
  int n_params;
  ScaleConstants<T> scale;
  RqConstants<T> spline;
  T logits;  // factor of widths and heights

  static MaskedConstants from(const MaskedMap& m) {
    MaskedConstants c{};
    c.is_spline = m.kind == kMaskedSpline;
    c.inverse = m.inverse;
    c.n_params = m.n_params;
    if (c.is_spline) {
      const int64_t bins = (m.n_params + 1) / 3;
      RqSplineOptions o{};
      o.left = o.bottom = -m.c0, o.right = o.top = m.c0;
      o.min_width = m.c1, o.min_height = m.c2, o.min_slope = m.c3;
      c.spline = rq_constants<T>(bins, bins - 1, o);
      c.logits = static_cast<T>(m.c4);
    } else {
      c.scale_map = static_cast<ScaleMap>(m.kind);
      c.scale = ScaleConstants<T>::from({c.scale_map, m.c0, m.c1, m.c2, m.c3, m.c4});
    }
    return c;
  }
};

// One number's parameters, which lie `stride` numbers apart.
template <class R>
struct MaskedParams {
  R* at;
  int64_t stride;
  GF_HD R& operator[](int j) const { return at[j * stride]; }
  GF_HD MaskedParams from(int j) const { return {at + j * stride, stride}; }
};

template <class R>
struct Mapped {
  R x, log_det;
};

// The parameters are shift and raw scale.
template <ScaleMap kMap, class R>
GF_HD Mapped<R> masked_affine(const MaskedConstants<scalar_t<R>>& c, R z, const MaskedParams<R>& p) {
  const Scale<R> f = coupling_scale<kMap>(p[1], c.scale);
  return {coupling_apply(c.inverse, z, p[0], f.s), c.inverse ? -f.log_s : f.log_s};
}

// Returns the cotangent of z, given those of x and of log|det|, and puts those of the parameters in their place.
template <ScaleMap kMap, class R>
GF_HD R masked_affine_adjoint(const MaskedConstants<scalar_t<R>>& c, R z, R x, R grad_x, R grad_log_det,
                              const MaskedParams<R>& p) {
  const CouplingAdjoint<R> g =
      coupling_adjoint(c.inverse, grad_x, grad_log_det, c.inverse ? x : z, coupling_scale<kMap>(p[1], c.scale));
  p[0] = g.shift;
  p[1] = g.raw;
  return g.x;
}

// Replaces logits by the exponentials of their differences to the largest, and returns the reciprocal of the sum.
template <class R>
GF_HD R masked_exponentials(const MaskedParams<R>& e, int bins, scalar_t<R> factor) {
  const R scale(factor);
  R top = e[0] * scale;
  for (int j = 1; j < bins; ++j) top = max(top, e[j] * scale);
  R sum(0);
  for (int j = 0; j < bins; ++j) {
    e[j] = exp_short(e[j] * scale - top);
    sum += e[j];
  }
  return R(1) / sum;
}

// A number's bin and the slopes at its ends; the logits of p are exponentials then.
template <class R>
struct MaskedBin {
  RqBin<R> bin;
  R r_w, r_h;
  RqSlope<R> low, high;
};

template <bool kInverse, class R>
GF_HD MaskedBin<R> masked_bin(const MaskedConstants<scalar_t<R>>& c, R z, const MaskedParams<R>& p) {
  using I = RqIndex<R>;
  const int bins = c.spline.bins;
  const MaskedParams<R> w = p, h = p.from(bins), d = p.from(2 * bins);
  MaskedBin<R> b;
  b.r_w = masked_exponentials(w, bins, c.logits);
  b.r_h = masked_exponentials(h, bins, c.logits);
  b.bin = rq_locate<0, kInverse>(z, w, h, b.r_w, b.r_h, c.spline);
  R low(0), high(0);
  for (int j = 0; j < bins - 1; ++j) {
    low = select(I::equal(j + 1, b.bin.k), d[j], low);
    high = select(I::equal(j, b.bin.k), d[j], high);
  }
  b.low = rq_slope(low, I::equal(0, b.bin.k), c.spline);
  b.high = rq_slope(high, I::equal(bins - 1, b.bin.k), c.spline);
  return b;
}

template <bool kInverse, class R>
GF_HD Mapped<R> masked_spline(const MaskedConstants<scalar_t<R>>& c, R z, const MaskedParams<R>& p) {
  const auto inside = rq_inside<kInverse>(z, c.spline);
  const MaskedBin<R> b = masked_bin<kInverse>(c, rq_inner<kInverse>(z, c.spline), p);
  const RqPoint<R> q = rq_evaluate<kInverse>(b.bin, b.low.d, b.high.d, c.spline);
  return {select(inside, q.y, z), select(inside, q.log_det, select(z == z, R(0), z))};
}

template <bool kInverse, class R>
GF_HD R masked_spline_adjoint(const MaskedConstants<scalar_t<R>>& c, R z, R grad_x, R grad_log_det,
                              const MaskedParams<R>& p) {
  using I = RqIndex<R>;
  const R zero(0);
  const auto inside = rq_inside<kInverse>(z, c.spline);
  const MaskedBin<R> b = masked_bin<kInverse>(c, rq_inner<kInverse>(z, c.spline), p);
  const RqPoint<R> q = rq_evaluate<kInverse>(b.bin, b.low.d, b.high.d, c.spline);
  const RqAdjoint<R> g = rq_adjoint<kInverse>(q, select(inside, grad_x, zero), select(inside, grad_log_det, zero));
  const int bins = c.spline.bins;
  const MaskedParams<R> w = p, h = p.from(bins), d = p.from(2 * bins);
  const R factor(c.logits);
  rq_softmax_adjoint<0>(w, b.bin.k, b.bin.scale_w, b.r_w, g.x, g.w, b.bin.e_w, c.spline.unit_w, bins,
                        [&](int j, R v) { w[j] = select(inside, v * factor, zero); });
  rq_softmax_adjoint<0>(h, b.bin.k, b.bin.scale_h, b.r_h, g.y, g.h, b.bin.e_h, c.spline.unit_h, bins,
                        [&](int j, R v) { h[j] = select(inside, v * factor, zero); });
  const R low = select(inside, g.d0 * b.low.derivative, zero), high = select(inside, g.d1 * b.high.derivative, zero);
  for (int j = 0; j < bins - 1; ++j)
    d[j] = select(I::equal(j + 1, b.bin.k), low, zero) + select(I::equal(j, b.bin.k), high, zero);
  return select(inside, g.v, grad_x);
}

}  // namespace GF_BACKEND
}  // namespace gf
