// The monotone rational-quadratic spline (Gregory & Delbourgo 1982; Durkan et al. 2019), one number at a time, and its
// adjoints; written once for every Real.
//
// Logits w_j, h_j give bins of sizes W_j = 2B (m + (1 - mK) softmax(w)_j), H_j alike, from the knot (-B, -B) to (B, B),
// and raw slopes r_k give the slopes d_k = m_d + softplus(r_k) at the inner knots; the outer slopes are 1. Within the
// bin of left knot (X, Y), size (W, H), slopes d_0, d_1, put theta = (x - X) / W, phi = 1 - theta, t = theta phi,
// delta = H / W, a = d_0 / delta, b = d_1 / delta. All terms below are sums of positive ones: nothing cancels.
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
// Softmax. With s = softmax(w), k the bin, X' = dL/dX, W' = dL/dW: dL/ds_j = c (X' [j < k] + W' [j = k]), c = 2B (1 -
// mK), so dL/dw_j = c s_j (X' [j < k] + W' [j = k] - X' sum_{i<k} s_i - W' s_k).
#pragma once

#include "common/short_math.h"
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
  RqAxis<T> axis;
  T least_w, free_w;  // a bin is least + free softmax, in units
  T least_h, free_h;
  T min_slope;
  bool outer_slope;  // the slope at the right end comes from the raw slopes too
};

template <class T>
RqConstants<T> rq_constants(int64_t bins, int64_t slopes, double bound, double min_w, double min_h, double min_slope) {
  const double unit = RqUnits<T>::kAxis, least = RqUnits<T>::kLeast;
  RqConstants<T> c;
  c.bins = static_cast<int>(bins);
  c.axis.bound = static_cast<T>(bound);
  c.axis.wide_bound = c.axis.bound;
  c.axis.inverse = 0.5 / c.axis.wide_bound;
  c.least_w = static_cast<T>(unit * (min_w > least ? min_w : least));
  c.least_h = static_cast<T>(unit * (min_h > least ? min_h : least));
  c.free_w = static_cast<T>(unit * (1 - min_w * bins));
  c.free_h = static_cast<T>(unit * (1 - min_h * bins));
  c.min_slope = static_cast<T>(min_slope);
  c.outer_slope = slopes >= bins;
  return c;
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
template <int kBins, bool kInverse, class E, class R>
GF_HD RqBin<R> rq_locate(R v, const E& e_w, const E& e_h, R r_w, R r_h, const RqConstants<scalar_t<R>>& c) {
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
  f.place = U::place(v, total, c.axis);

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

// The slope at a knot and its derivative by the raw slope; `fixed`: an end, where it is 1. Slopes are kept within
// 2^-30 .. 2^30, so that no product below overflows.
template <class R>
struct RqSlope {
  R d, derivative;
};

template <class R, class M>
GF_HD RqSlope<R> rq_slope(R raw, M fixed, const RqConstants<scalar_t<R>>& c) {
  using T = scalar_t<R>;
  const R least(T(1.0 / (1 << 30))), most(T(1 << 30));
  const R z = exp_short(-abs(raw));
  const R free = R(c.min_slope) + (max(R(0), raw) + log1p_short(z));
  const R s = R(1) / (R(1) + z);
  const R sigmoid = select(raw >= R(0), s, z * s);
  const R d = min(most, max(least, free));
  return {select(fixed, R(1), d), select(fixed | (d != free), R(0), sigmoid)};
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
  const R unit(static_cast<T>(2 * c.axis.wide_bound / U::kAxis)), inv_axis(static_cast<T>(1 / U::kAxis));
  p.w = size_w * (R(2) - U::to_real(total_w) * inv_axis) * unit;
  p.h = size_h * (R(2) - U::to_real(total_h) * inv_axis) * unit;
  const R z = R(1) / (p.w * p.h);
  p.delta = p.h * p.h * z;
  const R inv_delta = p.w * p.w * z;
  p.a = d0 * inv_delta;
  p.b = d1 * inv_delta;
  return p;
}

// Of the bin place, x, y, w, h and the totals are read.
template <bool kInverse, class R>
GF_HD RqPoint<R> rq_evaluate(const RqBin<R>& f, const RqShape<R>& shape, const RqConstants<scalar_t<R>>& c) {
  using U = RqUnits<R>;
  RqPoint<R> p;
  static_cast<RqShape<R>&>(p) = shape;
  const auto start = kInverse ? f.y : f.x, size = kInverse ? f.h : f.w;
  const R r = R(1) / U::to_real(size);
  const R low = U::to_real(f.place - start) * r, high = U::to_real(start + size - f.place) * r;
  if constexpr (kInverse) {
    const R xi = max(R(0), low), eta = max(R(0), high);
    const R b = p.a * eta - p.b * xi;
    const R q = abs(b) + sqrt(fma(b, b, R(4) * xi * eta));
    const auto rising = b >= R(0);
    const R theta = select(rising, xi + xi, q), phi = select(rising, q, eta + eta);
    const R s = R(1) / (theta + phi);
    p.theta = theta * s;
    p.phi = phi * s;
  } else {
    p.theta = max(R(0), low);
    p.phi = max(R(0), high);
  }
  p.t = p.theta * p.phi;
  const R theta2 = p.theta * p.theta, phi2 = p.phi * p.phi;
  p.left = fma(p.a, p.t, theta2);
  p.right = fma(p.b, p.t, phi2);
  p.den = p.left + p.right;
  p.inv_den = R(1) / p.den;
  p.m = fma(p.b, theta2, fma(p.a, phi2, p.t + p.t));
  const R l = log_short(p.delta * p.m * p.inv_den * p.inv_den);
  p.log_det = kInverse ? -l : l;

  // From the nearer knot, so that the result is accurate relative to its distance from either.
  const R from_left = kInverse ? p.w * p.theta : p.h * p.left * p.inv_den;
  const R from_right = kInverse ? p.w * p.phi : p.h * p.right * p.inv_den;
  const auto near_left = from_left <= from_right;
  const auto knot = kInverse ? f.x : f.y, next = knot + (kInverse ? f.w : f.h);
  const R y = U::value(U::pick(near_left, knot, next), kInverse ? f.total_w : f.total_h,
                       select(near_left, from_left, -from_right), c.axis);
  p.y = min(R(c.axis.bound), max(R(-c.axis.bound), y));
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

// Gives set(j, gradient of logit j) for one axis. `scale` is free / sum as in RqBin, `r` the reciprocal of the sum;
// knot and size are the cotangents X' and W' of the derivation, e_k the exponential of the bin.
template <int kBins, class E, class R, class F>
GF_HD void rq_softmax_adjoint(const E& e, typename RqIndex<R>::type k, R scale, R r, R knot, R size, R e_k,
                              const RqConstants<scalar_t<R>>& c, F&& set) {
  using T = scalar_t<R>;
  using I = RqIndex<R>;
  const int n = kBins ? kBins : c.bins;
  R before(0);
  RQ_UNROLL
  for (int j = 0; j < n - 1; ++j) before += select(I::below(j, k), e[j], R(0));
  const R mean = fma(knot, before * r, size * (e_k * r));
  const R length = scale * R(static_cast<T>(2 * c.axis.wide_bound / RqUnits<R>::kAxis));
  RQ_UNROLL
  for (int j = 0; j < n; ++j) {
    const R direct = select(I::below(j, k), knot, select(I::equal(j, k), size, R(0)));
    set(j, e[j] * length * (direct - mean));
  }
}

}  // namespace GF_BACKEND
}  // namespace gf
