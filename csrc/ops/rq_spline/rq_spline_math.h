// The monotone rational-quadratic spline (Gregory & Delbourgo 1982; Durkan et al. 2019), one number at a time, and its
// adjoints; written once for every Real.
//
// Logits w_j, h_j give bins of sizes W_j = L (m + (1 - mK) softmax(w)_j), L the length of the axis, H_j alike, from one
// corner of the box to the other. Raw slopes r_k give the slopes at the knots, d_k = m_d + softplus(beta r_k) / beta
// (beta = 1, or ln 2 / (1 - m_d), where r = 0 is a slope of 1); those at the ends may be fixed. zuko's dialect: W_j = L
// softmax(c(w))_j and d_k = exp(c(r_k)), where c(w) = w / (1 + |w| A) with A = 2 / |ln m_d| for logits and half of that
// for slopes; c' = 1 / (1 + |w| A)^2. Within the bin of left knot (X, Y), size (W, H), slopes d_0, d_1, put theta = (x
// - X) / W, phi = 1 - theta, t = theta phi, delta = H / W, a = d_0 / delta, b = d_1 / delta. All terms below are sums
// of positive ones: nothing cancels.
//   N = theta^2 + a t,  D = theta^2 + phi^2 + (a + b) t,  D - N = phi^2 + b t,  M = b theta^2 + 2 t + a phi^2
//   y = Y + H g,  g = N / D;  dg/dtheta = M / D^2;  log dy/dx = l = log(delta M / D^2)
//
// The inverse: with xi = (y - Y) / H, eta = 1 - xi, the odds r = theta / phi solve eta r^2 + p r - xi = 0, where
// p = a eta - b xi. Its discriminant p^2 + 4 xi eta is not negative. With q = |p| + sqrt(p^2 + 4 xi eta),
//   theta : phi = 2 xi : q for p >= 0, and q : 2 eta for p < 0.
//
// Adjoint. Let y' and l' be the cotangents of y and l, and Q = y' H / D. The partial derivatives of g and l,
//   dg/da = t (D - N) / D^2,  dg/db = -t N / D^2,
//   dl/dtheta = 2 (theta (b - 1) + phi (1 - a)) / M - 2 (a + b - 2)(phi - theta) / D,
//   dl/da = phi^2 / M - 2 t / D,  dl/db = theta^2 / M - 2 t / D,  dl/ddelta = 1 / delta  (a and b held),
// give the cotangents of theta, a, b as functions of theta, phi and t
//   G_theta = Q M / D + l' dl/dtheta,  G_a = Q t (D - N) / D + l' dl/da,  G_b = -Q t N / D + l' dl/db,
// and with theta = (x - X) / W, a = d_0 W / H, b = d_1 W / H
//   dL/dx = -dL/dX = G_theta / W,  dL/dY = y',  dL/dd_0 = G_a W / H,  dL/dd_1 = G_b W / H,
//   dL/dW = (-theta G_theta + a G_a + b G_b - l') / W,  dL/dH = (y' H g - a G_a - b G_b + l') / H.
//
// Adjoint of the inverse (y -> x, -l), with cotangents x' and m'. By the implicit function theorem dL/dy = c / (dy/dx)
// with c = x' - m' l_x, and every parameter gets what the adjoint above gives for y' = -c / (dy/dx), l' = -m'. That is
//   Q = -(x' W - m' dl/dtheta) D / M,  G_theta = -x' W,  dL/dy = -Q D / H.
//
// Softmax. With s = softmax(w), k the bin, X' = dL/dX, W' = dL/dW: dL/ds_j = c (X' [j < k] + W' [j = k]), c = L (1 -
// mK), so dL/dw_j = c s_j (X' [j < k] + W' [j = k] - X' sum_{i<k} s_i - W' s_k).
#pragma once

#include "common/short_math.h"
#include "ops/rq_spline/rq_spline.h"
#include "ops/rq_spline/rq_spline_units.h"

// Bins of a number known at compile time lie in registers on the GPU, which cannot be indexed: those loops unroll.
#if defined(__CUDACC__)
#define RQ_UNROLL _Pragma("unroll (kBins > 0 ? kBins : 1)")
#else
#define RQ_UNROLL
#endif

namespace gf {
inline namespace GF_BACKEND {

template <class T>
struct RqConstants {
  int bins;
  RqAxis<T> x, y;
  T unit_w, unit_h;   // the length of a unit
  T least_w, free_w;  // a bin is least + free softmax, in units
  T least_h, free_h;
  T min_slope, sharpness, bluntness;  // m_d, beta, 1 / beta
  T clip_logits, clip_slopes;         // A of zuko's dialect, or 0
  T edge;                             // the slope at an end that is fixed
  int first_slope;                    // the raw slope at the first knot: 0, or -1 where that is fixed
  int last_slope;  // what is read where there is no next one: the last, or the first of circular tails
  int slopes_read;
  int fixed_first, fixed_last;  // the bins whose left and right slope is fixed, or -1
  bool circular, closed, zuko;
  T outside;  // what is added to numbers outside: 0, or NaN

  // Of numbers, and of results.
  template <bool kInverse>
  GF_HD const RqAxis<T>& from() const {
    return kInverse ? y : x;
  }
  template <bool kInverse>
  GF_HD const RqAxis<T>& to() const {
    return kInverse ? x : y;
  }
};

template <class T>
RqAxis<T> rq_axis(double start, double end) {
  RqAxis<T> a;
  a.start = static_cast<T>(start);
  a.end = static_cast<T>(end);
  a.wide_start = a.start;
  a.length = static_cast<double>(a.end) - a.wide_start;
  a.inverse = 1 / a.length;
  a.offset = a.start == -a.end ? 0.5 : -a.wide_start * a.inverse;
  a.unit = a.length / RqUnits<T>::kAxis;
  return a;
}

template <class T>
RqConstants<T> rq_constants(int64_t bins, int64_t slopes, const RqSplineOptions& o) {
  const double unit = RqUnits<T>::kAxis, least = RqUnits<T>::kLeast;
  const bool fixed = o.tails == RqTails::linear, outer = fixed && slopes >= bins, zuko = o.dialect == RqDialect::zuko;
  RqConstants<T> c;
  c.bins = static_cast<int>(bins);
  c.x = rq_axis<T>(o.left, o.right);
  c.y = rq_axis<T>(o.bottom, o.top);
  c.unit_w = static_cast<T>(c.x.unit);
  c.unit_h = static_cast<T>(c.y.unit);
  c.least_w = static_cast<T>(unit * (o.min_width > least ? o.min_width : least));
  c.least_h = static_cast<T>(unit * (o.min_height > least ? o.min_height : least));
  c.free_w = static_cast<T>(unit * (1 - o.min_width * bins));
  c.free_h = static_cast<T>(unit * (1 - o.min_height * bins));
  const double ln2 = 0.693147180559945309417, beta = o.dialect == RqDialect::identity ? ln2 / (1 - o.min_slope) : 1;
  c.min_slope = static_cast<T>(o.min_slope);
  c.sharpness = static_cast<T>(beta);
  c.bluntness = static_cast<T>(1 / beta);
  c.clip_slopes = static_cast<T>(zuko ? -1 / ::log(o.min_slope) : 0);
  c.clip_logits = 2 * c.clip_slopes;
  // Pyro adds the minimum to the raw slopes alone. nflows fixes the raw slope to that of a slope of 1, which its
  // enable_identity_init then reads in another way.
  c.edge = static_cast<T>(o.dialect == RqDialect::pyro ? 1 - o.min_slope
                          : o.dialect == RqDialect::identity
                              ? o.min_slope + ::log1p(::pow(::expm1(1 - o.min_slope), beta)) / beta
                              : 1);
  c.first_slope = fixed ? -1 : 0;
  c.circular = o.tails == RqTails::circular;
  c.last_slope = c.circular || slopes == 0 ? 0 : static_cast<int>(slopes) - 1;
  c.slopes_read = static_cast<int>(fixed && slopes > bins ? bins : slopes);
  c.fixed_first = fixed ? 0 : -1;
  c.fixed_last = fixed && !outer ? c.bins - 1 : -1;
  c.closed = o.tails == RqTails::none;
  c.zuko = zuko;
  c.outside = c.closed ? static_cast<T>(NAN) : 0;
  return c;
}

template <bool kInverse, class R>
GF_HD auto rq_inside(R v, const RqConstants<scalar_t<R>>& c) {
  return (v >= R(c.template from<kInverse>().start)) & (v <= R(c.template from<kInverse>().end));
}
// The number whose bin is sought: where there is none, any number will do.
template <bool kInverse, class R>
GF_HD R rq_inner(R v, const RqConstants<scalar_t<R>>& c) {
  return select(rq_inside<kInverse>(v, c), v, R(c.template from<kInverse>().start));
}

// A whole number a lane: the bin.
template <class R>
struct RqIndex {
  using type = int;
  static GF_HD int splat(int j) { return j; }
  static GF_HD bool below(int j, int k) { return j < k; }
  static GF_HD bool equal(int j, int k) { return j == k; }
  static GF_HD int pick(bool m, int a, int b) { return m ? a : b; }
};
#if !defined(__CUDACC__)
template <class T, int N>
struct RqIndex<Pack<T, N>> {
  using type = typename Pack<T, N>::IntVec;
  static GF_HD type splat(int j) { return static_cast<typename IntOf<T>::type>(j) - type{}; }
  static GF_HD Mask<T, N> below(int j, type k) { return {splat(j) < k}; }
  static GF_HD Mask<T, N> equal(int j, type k) { return {splat(j) == k}; }
  static GF_HD type pick(Mask<T, N> m, type a, type b) { return m.m ? a : b; }
};
#endif

// 1 / (1 + |w| A) for the soft clip c(w) = w / (1 + |w| A), and that; infinity counts as a large number.
template <class R>
GF_HD R rq_soft_clip(R* w, R clip) {
  const R large(static_cast<scalar_t<R>>(int64_t(1) << 60));
  const R finite = min(large, max(-large, *w));
  const R s = R(1) / fma(abs(finite), clip, R(1));
  *w = finite * s;
  return s;
}

// Replaces logits by exp(logit - max); returns the reciprocal of their sum.
template <int kBins, class R>
GF_HD R rq_exponentials(R* e, int bins) {
  const int n = kBins ? kBins : bins;
  R top = e[0];
  RQ_UNROLL
  for (int j = 1; j < n; ++j) top = max(top, e[j]);
  R sum(0);
  RQ_UNROLL
  for (int j = 0; j < n; ++j) {
    e[j] = exp_short(e[j] - top);
    sum += e[j];
  }
  return R(1) / sum;
}

// The bin of a number: knots and sizes in units.
template <class R>
struct RqBin {
  using Units = typename RqUnits<R>::Units;
  typename RqIndex<R>::type k;
  Units place;             // of the number, on its axis
  Units x, y, w, h;        // left knot, size
  Units total_w, total_h;  // of all sizes
  R size_w, size_h;        // sizes before rounding to units
  R e_w, e_h;              // exponentials of the bin
  R scale_w, scale_h;      // free / sum of exponentials
};

// e_w[j], e_h[j]: the exponentials of all bins; r_w, r_h: the reciprocals of their sums.
template <int kBins, bool kInverse, class EW, class EH, class R>
GF_HD RqBin<R> rq_locate(R v, const EW& e_w, const EH& e_h, R r_w, R r_h, const RqConstants<scalar_t<R>>& c) {
  using T = scalar_t<R>;
  using U = RqUnits<R>;
  using I = RqIndex<R>;
  const int n = kBins ? kBins : c.bins;
  RqBin<R> f;
  f.scale_w = R(c.free_w) * r_w;
  f.scale_h = R(c.free_h) * r_h;
  const R base_w(c.least_w + T(U::kHalf)), base_h(c.least_h + T(U::kHalf));

  auto total = U::zero();
  RQ_UNROLL
  for (int j = 0; j < n; ++j)
    total += U::from_size(kInverse ? fma(e_h[j], f.scale_h, base_h) : fma(e_w[j], f.scale_w, base_w));
  f.place = U::place(v, total, c.template from<kInverse>());

  auto x = U::zero(), y = U::zero();
  f.x = x;
  f.y = y;
  f.e_w = e_w[0];
  f.e_h = e_h[0];
  f.k = I::splat(0);
  RQ_UNROLL
  for (int j = 1; j < n; ++j) {
    x += U::from_size(fma(e_w[j - 1], f.scale_w, base_w));
    y += U::from_size(fma(e_h[j - 1], f.scale_h, base_h));
    const auto past = U::reached(f.place, kInverse ? y : x);
    f.x = U::pick(past, x, f.x);
    f.y = U::pick(past, y, f.y);
    f.e_w = select(past, e_w[j], f.e_w);
    f.e_h = select(past, e_h[j], f.e_h);
    f.k = I::pick(past, I::splat(j), f.k);
  }
  f.total_w = kInverse ? x + U::from_size(fma(e_w[n - 1], f.scale_w, base_w)) : total;
  f.total_h = kInverse ? total : y + U::from_size(fma(e_h[n - 1], f.scale_h, base_h));
  f.size_w = fma(f.e_w, f.scale_w, R(c.least_w));
  f.size_h = fma(f.e_h, f.scale_h, R(c.least_h));
  f.w = U::from_size(fma(f.e_w, f.scale_w, base_w));
  f.h = U::from_size(fma(f.e_h, f.scale_h, base_h));
  return f;
}

// The slope at a knot and its derivative by the raw slope; `fixed`: an end, where it is c.edge. Slopes are kept within
// 2^-30 .. 2^30, so that no product below overflows.
template <class R>
struct RqSlope {
  R d, derivative;
};

template <class R, class M>
GF_HD RqSlope<R> rq_slope(R raw, M fixed, const RqConstants<scalar_t<R>>& c) {
  using T = scalar_t<R>;
  const R least(T(1.0 / (1 << 30))), most(T(1 << 30));
  R free, derivative;
  if (c.zuko) {
    const R s = rq_soft_clip(&raw, R(c.clip_slopes));
    free = exp_short(min(R(40), raw));
    derivative = free * s * s;
  } else {
    raw = raw * R(c.sharpness);
    const R z = exp_short(-abs(raw));
    free = fma(max(R(0), raw) + log1p_short(z), R(c.bluntness), R(c.min_slope));
    const R s = R(1) / (R(1) + z);
    derivative = select(raw >= R(0), s, z * s);
  }
  const R d = min(most, max(least, free));
  return {select(fixed, R(c.edge), d), select(fixed | (d != free), R(0), derivative)};
}

// What a bin is for every number in it.
template <class R>
struct RqShape {
  R w, h, a, b;  // sizes of the bin, slopes over delta
  R delta;       // h / w
};

template <class R>
struct RqPoint : RqShape<R> {
  R theta, phi, t;
  R left, right, den, inv_den, m;  // N, D - N, D, 1 / D, M
  R y, log_det;                    // of the direction asked for
};

// Sizes and totals as in RqBin; d0 and d1 are the slopes at both ends.
template <class R>
GF_HD RqShape<R> rq_shape(R size_w, R size_h, typename RqUnits<R>::Units total_w, typename RqUnits<R>::Units total_h,
                          R d0, R d1, const RqConstants<scalar_t<R>>& c) {
  using T = scalar_t<R>;
  using U = RqUnits<R>;
  RqShape<R> p;
  const R inv_axis(static_cast<T>(1 / U::kAxis));
  p.w = size_w * (R(2) - U::to_real(total_w) * inv_axis) * R(c.unit_w);
  p.h = size_h * (R(2) - U::to_real(total_h) * inv_axis) * R(c.unit_h);
  const R z = R(1) / (p.w * p.h);
  p.delta = p.h * p.h * z;
  const R inv_delta = p.w * p.w * z;
  p.a = d0 * inv_delta;
  p.b = d1 * inv_delta;
  return p;
}

// The place within the bin, from its left end and from its right: shares of its size that add up to 1.
template <bool kInverse, class R>
GF_HD void rq_within(const RqBin<R>& f, R* low, R* high) {
  using U = RqUnits<R>;
  const auto start = kInverse ? f.y : f.x, size = kInverse ? f.h : f.w;
  const R r = R(1) / U::to_real(size);
  *low = max(R(0), U::to_real(f.place - start) * r);
  *high = max(R(0), U::to_real(start + size - f.place) * r);
}

// theta and phi of N / D = xi, as the derivation has it.
template <class R>
GF_HD void rq_root(R a, R b, R xi, R eta, R* theta, R* phi) {
  const R p = a * eta - b * xi;
  const R q = abs(p) + sqrt(fma(p, p, R(4) * xi * eta));
  const auto rising = p >= R(0);
  const R left = select(rising, xi + xi, q), right = select(rising, q, eta + eta);
  const R s = R(1) / (left + right);
  *theta = left * s;
  *phi = right * s;
}

// The result at these distances from the bin's knots: from the nearer one, so that it is accurate relative to its
// distance from either.
template <bool kInverse, class R>
GF_HD R rq_result(const RqBin<R>& f, R from_left, R from_right, const RqConstants<scalar_t<R>>& c) {
  using U = RqUnits<R>;
  const auto near_left = from_left <= from_right;
  const auto knot = kInverse ? f.x : f.y, next = knot + (kInverse ? f.w : f.h);
  const R y = U::value(U::pick(near_left, knot, next), kInverse ? f.total_w : f.total_h,
                       select(near_left, from_left, -from_right), c.template to<kInverse>());
  return min(R(c.template to<kInverse>().end), max(R(c.template to<kInverse>().start), y));
}

// Of the bin place, x, y, w, h and the totals are read.
template <bool kInverse, class R>
GF_HD RqPoint<R> rq_evaluate(const RqBin<R>& f, const RqShape<R>& shape, const RqConstants<scalar_t<R>>& c) {
  RqPoint<R> p;
  static_cast<RqShape<R>&>(p) = shape;
  rq_within<kInverse>(f, &p.theta, &p.phi);
  if constexpr (kInverse) rq_root(p.a, p.b, p.theta, p.phi, &p.theta, &p.phi);
  p.t = p.theta * p.phi;
  const R theta2 = p.theta * p.theta, phi2 = p.phi * p.phi;
  p.left = fma(p.a, p.t, theta2);
  p.right = fma(p.b, p.t, phi2);
  p.den = p.left + p.right;
  p.inv_den = R(1) / p.den;
  p.m = fma(p.b, theta2, fma(p.a, phi2, p.t + p.t));
  const R l = log_short(p.delta * p.m * p.inv_den * p.inv_den);
  p.log_det = kInverse ? -l : l;
  p.y = kInverse ? rq_result<kInverse>(f, p.w * p.theta, p.w * p.phi, c)
                 : rq_result<kInverse>(f, p.h * p.left * p.inv_den, p.h * p.right * p.inv_den, c);
  return p;
}

template <bool kInverse, class R>
GF_HD RqPoint<R> rq_evaluate(const RqBin<R>& f, R d0, R d1, const RqConstants<scalar_t<R>>& c) {
  return rq_evaluate<kInverse>(f, rq_shape(f.size_w, f.size_h, f.total_w, f.total_h, d0, d1, c), c);
}

// Cotangents of the number, the left knot, the sizes and the slopes.
template <class R>
struct RqAdjoint {
  R v, x, y, w, h, d0, d1;
};

template <bool kInverse, class R>
GF_HD RqAdjoint<R> rq_adjoint(const RqPoint<R>& p, R grad_y, R grad_log_det) {
  const R l = kInverse ? -grad_log_det : grad_log_det;
  const R inv_m = R(1) / p.m, td = p.t * p.inv_den;
  const R dl = R(2) * ((p.theta * (p.b - R(1)) + p.phi * (R(1) - p.a)) * inv_m -
                       (p.a + p.b - R(2)) * (p.phi - p.theta) * p.inv_den);
  const R g = p.left * p.inv_den;
  R q, theta, y;
  if constexpr (kInverse) {
    q = -fma(grad_y, p.w, l * dl) * p.den * inv_m;
    theta = -grad_y * p.w;
    y = q * p.den / p.h;
  } else {
    q = grad_y * p.h * p.inv_den;
    theta = fma(q * p.m, p.inv_den, l * dl);
    y = grad_y;
  }
  const R ga = fma(q * td, p.right, l * fma(p.phi * p.phi, inv_m, R(-2) * td));
  const R gb = fma(-q * td, p.left, l * fma(p.theta * p.theta, inv_m, R(-2) * td));
  const R ab = fma(p.a, ga, p.b * gb);
  const R inv_w = R(1) / p.w, inv_h = R(1) / p.h, inv_delta = p.w * inv_h;
  RqAdjoint<R> r;
  r.v = kInverse ? -y : theta * inv_w;
  r.x = -theta * inv_w;
  r.y = y;
  r.w = (ab - l - p.theta * theta) * inv_w;
  r.h = fma(y, g, (l - ab) * inv_h);
  r.d0 = ga * inv_delta;
  r.d1 = gb * inv_delta;
  return r;
}

// Gives set(j, gradient of logit j) for one axis. `scale` is free / sum as in RqBin, `r` the reciprocal of the sum,
// `unit` the length of a unit; knot and size are the cotangents X' and W' of the derivation, e_k the exponential of the
// bin. Where logits are clipped, this is the gradient of the clipped ones.
template <int kBins, class E, class R, class F>
GF_HD void rq_softmax_adjoint(const E& e, typename RqIndex<R>::type k, R scale, R r, R knot, R size, R e_k,
                              scalar_t<R> unit, int bins, F&& set) {
  using I = RqIndex<R>;
  const int n = kBins ? kBins : bins;
  R before(0);
  RQ_UNROLL
  for (int j = 0; j < n - 1; ++j) before += select(I::below(j, k), e[j], R(0));
  const R mean = fma(knot, before * r, size * (e_k * r));
  const R length = scale * R(unit);
  RQ_UNROLL
  for (int j = 0; j < n; ++j) {
    const R direct = select(I::below(j, k), knot, select(I::equal(j, k), size, R(0)));
    set(j, e[j] * length * (direct - mean));
  }
}

}  // namespace GF_BACKEND
}  // namespace gf
