// Monotone splines of polynomial pieces, one number at a time, and their adjoints; written once for every Real. Bins,
// units and the search are those of the rational-quadratic spline (rq_spline_math.h).
//
// Within the bin of left knot (X, Y), size (W, H), put theta = (x - X) / W, phi = 1 - theta, t = theta phi, and a, b
// the slopes at its ends over H / W. Then y = Y + H g and log dy/dx = l = log(m H / W), with m = dg/dtheta:
//   linear     g = theta                                           m = 1
//   quadratic  g = theta^2 + a t                                   m = a phi + b theta             (a + b = 2)
//   cubic      g = theta (a phi^2 + theta (theta + (3 - b) phi))   m = a phi^2 + b theta^2 + 2 t (3 - a - b)
// and 1 - g is the same with theta and phi, a and b exchanged. 0 <= a, b <= 3, so g is a sum of positive terms; m is
// not, and kept above 2^-30, which it falls below in a single bin of slopes 3 alone.
//
// Inverse, g = xi: the quadratic one has N / D of the rational-quadratic spline, with D = 1. The cubic one is solved by
// Newton's method in whichever of theta and phi is below 1/2, from the root of the rational-quadratic piece of the same
// slopes, and bisected where Newton's step leaves the interval that the root is known to lie in.
//
// Parameters. Widths of quadratic and cubic pieces, and heights of linear and cubic ones, are the rational-quadratic
// spline's (linear: equal widths, no minimum).
//   cubic      At the ends a or b = 3 sigmoid(raw). At an inner knot with rho the slope of the neighbour over that of
//              the bin, the weighted mean (W rho + W_n) / (W + W_n), but at most 2 and 2 rho (Steffen 1990).
//   quadratic  V_j = softplus(r_j) + 0.001 at the knots, A = sum (V_j + V_{j+1}) / 2 s_j the area under them, s_j the
//              widths of an axis of length 1; n_j = q + (1 - q) V_j / A are the densities at the knots, q the minimum,
//              (n_j + n_{j+1}) / 2 s_j the heights. Without those at the ends, V_0 = V_K = c with
//              c (1 - (s_0 + s_{K-1}) / 4) = (s_0 V_1 + s_{K-1} V_{K-1}) / 4 + sum_{0<j<K-1} (V_j + V_{j+1}) / 2 s_j,
//              as nflows has it.
//
// Adjoint, with y', l' the cotangents of y and l: theta' = y' H m + l' m_theta / m, a' = y' H g_a + l' m_a / m, b'
// alike,
//   dL/dx = -X' = theta' / W,  Y' = y',  W' = -(l' + theta theta') / W,  H' = y' g + l' / H   (a, b held),
// and of the inverse (y -> x, -l), with cotangents x', -l': y' = -(x' W + l' m_theta / m) / (H m), theta' = -x' W, and
// dL/dy = -y'; derived as in rq_spline_math.h.
#pragma once

#include "ops/poly_spline/poly_spline.h"
#include "ops/rq_spline/rq_spline_math.h"

namespace gf {
inline namespace GF_BACKEND {

constexpr double kPolyLeastDensity = 1e-3;

template <class T>
struct PolyConstants : RqConstants<T> {
  bool fixed_ends;  // of the quadratic one: densities at the inner knots only
  T least_density;  // its q
};

template <class T>
PolyConstants<T> poly_constants(const PolySplineOptions& o, int64_t size) {
  RqSplineOptions q{};
  q.left = o.left, q.right = o.right, q.bottom = o.bottom, q.top = o.top;
  q.tails = o.closed ? RqTails::none : RqTails::own;
  if (o.kind != PolyKind::linear) q.min_width = o.min_width;
  if (o.kind == PolyKind::cubic) q.min_height = o.min_height;
  PolyConstants<T> c;
  static_cast<RqConstants<T>&>(c) = rq_constants<T>(o.bins, o.bins + 1, q);
  c.fixed_ends = o.kind == PolyKind::quadratic && size < 2 * o.bins;
  c.least_density = static_cast<T>(o.min_height);
  return c;
}

template <class R>
struct PolyPoint {
  R theta, phi, a, b;
  R left, m, slope;  // g, m, m_theta
  R g_a, g_b, m_a, m_b;
};

template <class R>
GF_HD R poly_least(R x) {
  return max(R(static_cast<scalar_t<R>>(1.0 / (1 << 30))), x);
}

// --- the polynomials ---

// theta and phi of a cubic's g = xi.
template <class R>
GF_HD void cubic_root(R a, R b, R xi, R eta, R* theta, R* phi) {
  using T = scalar_t<R>;
  constexpr bool kDouble = sizeof(T) == 8;
  const R near(static_cast<T>(kDouble ? 1e-10 : 1e-5)), tiny(static_cast<T>(1e-30));
  const auto beyond = xi * R(8) > R(4) + a - b;
  const R p = select(beyond, b, a), q = R(3) - select(beyond, a, b), target = select(beyond, eta, xi);
  R s, rest;
  rq_root(p, R(3) - q, target, select(beyond, xi, eta), &s, &rest);
  R low(0), high(T(0.5));
  s = min(high, s);
  for (int i = 0; i < (kDouble ? 120 : 56); ++i) {
    const R u = R(1) - s;
    const R f = s * fma(p, u * u, s * fma(q, u, s)) - target;
    const R m = fma(p, u * u, s * fma(R(3) - q, s, R(2) * u * (q - p)));
    const auto below = f < R(0);
    low = select(below, s, low);
    high = select(below, high, s);
    const R step = s - f / max(tiny, m);
    auto taken = (step >= low) & (step <= high);
    if (i >= 8 && i % 2 == 1) taken = taken & (f == R(0));  // so that the interval is halved again and again
    const R next = select(taken, step, R(T(0.5)) * (low + high));
    const auto close = (taken & (abs(next - s) <= near * next)) | (f == R(0)) | (f != f);
    s = next;
    if (all(close)) break;
  }
  *theta = select(beyond, R(1) - s, s);
  *phi = select(beyond, s, R(1) - s);
}

// theta and phi are set, or are xi and eta of the inverse.
template <PolyKind kKind, bool kInverse, class R>
GF_HD void poly_evaluate(PolyPoint<R>* p, R* right) {
  if constexpr (kInverse && kKind == PolyKind::quadratic) rq_root(p->a, p->b, p->theta, p->phi, &p->theta, &p->phi);
  if constexpr (kInverse && kKind == PolyKind::cubic) cubic_root(p->a, p->b, p->theta, p->phi, &p->theta, &p->phi);
  const R theta = p->theta, phi = p->phi, a = p->a, b = p->b;
  if constexpr (kKind == PolyKind::linear) {
    p->left = theta, *right = phi;
    p->m = R(1), p->slope = R(0);
    p->g_a = p->g_b = p->m_a = p->m_b = R(0);
  } else if constexpr (kKind == PolyKind::quadratic) {
    const R t = theta * phi;
    p->left = fma(a, t, theta * theta), *right = fma(b, t, phi * phi);
    p->m = poly_least(fma(a, phi, b * theta)), p->slope = b - a;
    p->g_a = t, p->g_b = R(0);
    p->m_a = phi, p->m_b = theta;
  } else {
    const R t = theta * phi, theta2 = theta * theta, phi2 = phi * phi, rest = R(3) - a - b;
    p->left = theta * fma(a, phi2, theta * fma(R(3) - b, phi, theta));
    *right = phi * fma(b, theta2, phi * fma(R(3) - a, theta, phi));
    p->m = poly_least(fma(a, phi2, fma(b, theta2, R(2) * t * rest)));
    p->slope = R(2) * (b * theta - a * phi + rest * (phi - theta));
    p->g_a = t * phi, p->g_b = -t * theta;
    p->m_a = phi2 - R(2) * t, p->m_b = theta2 - R(2) * t;
  }
}

// --- the parameters ---

// Equal widths.
template <class R>
struct PolyOnes {
  GF_HD R operator[](int) const { return R(1); }
};

// The gradient of logits from their exponentials e, the reciprocal r of the sum of these, and the cotangents direct(j)
// of free softmax_j.
template <class R, class D, class F>
GF_HD void poly_softmax_adjoint(const R* e, int n, R r, R free, D&& direct, F&& set) {
  R mean(0);
  for (int j = 0; j < n; ++j) mean = fma(e[j], direct(j), mean);
  mean = mean * r;
  const R length = free * r;
  for (int j = 0; j < n; ++j) set(j, e[j] * length * (direct(j) - mean));
}

// Of the quadratic spline: widths of an axis of length 1, V and the areas under the densities.
template <class R>
struct PolyDensities {
  using T = scalar_t<R>;
  const R *e, *soft;  // exponentials of the widths, softplus of the raw densities
  int n;
  bool fixed_ends;
  R scale, least;         // a width is scale e + least
  R ends, gain, minimum;  // c; (1 - q) / A; q

  GF_HD R width(int j) const { return fma(e[j], scale, least); }
  GF_HD R at(int j) const {
    if (fixed_ends) return j == 0 || j == n ? ends : soft[j - 1] + R(static_cast<T>(kPolyLeastDensity));
    return soft[j] + R(static_cast<T>(kPolyLeastDensity));
  }
  GF_HD R mean(int j) const { return R(static_cast<T>(0.5)) * (at(j) + at(j + 1)); }
  GF_HD R operator[](int j) const { return fma(mean(j), gain, minimum) * width(j); }
  // 1 - (s_0 + s_{K-1}) / 4
  GF_HD R rest() const { return fma(R(static_cast<T>(-0.25)), width(0) + width(n - 1), R(1)); }
};

// Replaces the parameters by exponentials and softplus; `r` becomes the reciprocal sum of the former.
template <class R>
GF_HD PolyDensities<R> poly_densities(R* row, const PolyConstants<scalar_t<R>>& c, R* r) {
  using T = scalar_t<R>;
  const int n = c.bins, knots = c.fixed_ends ? n - 1 : n + 1;
  const T inv_axis = static_cast<T>(1 / RqUnits<R>::kAxis);
  *r = rq_exponentials<0>(row, n);
  for (int j = 0; j < knots; ++j) {
    const R raw = row[n + j];
    row[n + j] = min(R(T(1 << 30)), max(R(0), raw) + log1p_short(exp_short(-abs(raw))));
  }
  PolyDensities<R> d{
      row,  row + n,           n, c.fixed_ends, R(c.free_w * inv_axis) * *r, R(c.least_w * inv_axis), R(0),
      R(0), R(c.least_density)};
  if (c.fixed_ends) {
    R sum = R(T(0.25)) * fma(d.width(0), d.at(1), d.width(n - 1) * d.at(n - 1));
    for (int j = 1; j < n - 1; ++j) sum = fma(d.width(j), d.mean(j), sum);
    d.ends = sum / d.rest();
  }
  R area(0);
  for (int j = 0; j < n; ++j) area = fma(d.width(j), d.mean(j), area);
  d.gain = R(1 - c.least_density) / area;
  return d;
}

// One end of a cubic piece, and its derivatives by the sizes of the bin and of its neighbour.
template <class R>
struct CubicEnd {
  R value, own_w, own_h, next_w, next_h;
  R by_raw;
};

// `outer`: an end of the spline, where the raw slope says it.
template <class R, class M>
GF_HD CubicEnd<R> cubic_end(R w, R h, R next_w, R next_h, R raw, M outer) {
  using T = scalar_t<R>;
  const R sum = R(1) / (w + next_w), share = w * sum;
  const R rho = (next_h / h) * (w / next_w);
  const R mean = fma(share, rho, next_w * sum), twice = rho + rho;
  const auto is_mean = (mean <= twice) & (mean <= R(2));
  const auto is_twice = (twice < mean) & (twice <= R(2));
  const R by_rho = select(is_mean, share, select(is_twice, R(2), R(0)));
  const R by_share = select(is_mean, (rho - R(1)) * sum, R(0));
  const R z = exp_short(-abs(raw)), q = R(1) / (R(1) + z);
  const R sigmoid = select(raw >= R(0), q, z * q);
  CubicEnd<R> e;
  const R least(static_cast<T>(1.0 / (1 << 30))), free = R(3) * sigmoid;
  e.value = select(outer, max(least, free), min(R(2), min(twice, mean)));
  e.by_raw = select(outer & (free > least), R(3) * z * q * q, R(0));
  e.own_w = select(outer, R(0), by_rho * (rho / w) + by_share * (next_w * sum));
  e.own_h = select(outer, R(0), -by_rho * (rho / h));
  e.next_w = select(outer, R(0), -by_rho * (rho / next_w) - by_share * share);
  e.next_h = select(outer, R(0), by_rho * (rho / next_h));
  return e;
}

// The neighbours of a bin, their exponentials.
template <class R>
struct CubicNeighbours {
  R before, after;
};
template <class R>
GF_HD CubicNeighbours<R> cubic_neighbours(const R* e, int n, typename RqIndex<R>::type k) {
  using I = RqIndex<R>;
  CubicNeighbours<R> f{e[0], e[n - 1]};
  for (int j = 0; j < n; ++j) {
    f.before = select(I::equal(j + 1, k), e[j], f.before);
    f.after = select(I::equal(j - 1, k), e[j], f.after);
  }
  return f;
}

// --- one number ---

// The forward gives y and log_det. The backward is given their cotangents and gives the gradient of the number, in y,
// and of the parameters, in grad. `row` is the row of parameters, and is overwritten.
template <PolyKind kKind, bool kInverse, bool kBackward, class R>
GF_HD void poly_number(R v, R* row, R* grad, R* y, R* log_det, const PolyConstants<scalar_t<R>>& c) {
  using T = scalar_t<R>;
  using I = RqIndex<R>;
  constexpr bool kLinear = kKind == PolyKind::linear, kQuadratic = kKind == PolyKind::quadratic,
                 kCubic = kKind == PolyKind::cubic;
  const int n = c.bins;
  const auto inside = rq_inside<kInverse>(v, c);
  const R number = rq_inner<kInverse>(v, c);
  const RqConstants<T>& shared = c;
  R *const row_h = kLinear ? row : row + n, r_w, r_h;
  RqBin<R> bin;
  PolyDensities<R> d;
  if constexpr (kQuadratic) {
    d = poly_densities(row, c, &r_w);
    r_h = R(1);
    bin = rq_locate<0, kInverse>(number, row, d, r_w, r_h, shared);
  } else {
    r_h = rq_exponentials<0>(row_h, n);
    if constexpr (kLinear) {
      r_w = R(1 / T(n));
      bin = rq_locate<0, kInverse>(number, PolyOnes<R>{}, row_h, r_w, r_h, shared);
    } else {
      r_w = rq_exponentials<0>(row, n);
      bin = rq_locate<0, kInverse>(number, row, row_h, r_w, r_h, shared);
    }
  }
  const RqShape<R> size = rq_shape(bin.size_w, bin.size_h, bin.total_w, bin.total_h, R(1), R(1), shared);
  const R w = size.w, h = size.h;

  PolyPoint<R> p;
  R v0(0), v1(0), densities(0);
  CubicEnd<R> start, end;
  CubicNeighbours<R> e_w, e_h;
  p.a = p.b = R(1);
  if constexpr (kQuadratic) {
    for (int j = 0; j < n; ++j) {
      const auto here = I::equal(j, bin.k);
      v0 = select(here, d.at(j), v0);
      v1 = select(here, d.at(j + 1), v1);
    }
    const R n0 = fma(v0, d.gain, d.minimum), n1 = fma(v1, d.gain, d.minimum);
    densities = n0 + n1;
    p.a = R(2) * n0 / densities;
    p.b = R(2) * n1 / densities;
  }
  if constexpr (kCubic) {
    e_w = cubic_neighbours(row, n, bin.k);
    e_h = cubic_neighbours(row_h, n, bin.k);
    const R unit_w = w / bin.size_w, unit_h = h / bin.size_h;
    const auto width = [&](R e) { return fma(e, bin.scale_w, R(c.least_w)) * unit_w; };
    const auto height = [&](R e) { return fma(e, bin.scale_h, R(c.least_h)) * unit_h; };
    start = cubic_end(w, h, width(e_w.before), height(e_h.before), row[2 * n], I::equal(0, bin.k));
    end = cubic_end(w, h, width(e_w.after), height(e_h.after), row[2 * n + 1], I::equal(n - 1, bin.k));
    p.a = start.value;
    p.b = end.value;
  }
  R right;
  rq_within<kInverse>(bin, &p.theta, &p.phi);
  poly_evaluate<kKind, kInverse>(&p, &right);

  if constexpr (!kBackward) {
    const R l = log_short(size.delta * p.m);
    const R result = kInverse ? rq_result<kInverse>(bin, w * p.theta, w * p.phi, shared)
                              : rq_result<kInverse>(bin, h * p.left, h * right, shared);
    *y = select(inside, result, v + R(c.outside));
    *log_det = select(inside, kInverse ? -l : l, select(v == v, R(c.outside), v));
    return;
  }

  const R cotangent = select(inside, *y, R(0)), l_given = select(inside, *log_det, R(0));
  const R l = kInverse ? -l_given : l_given, inv_m = R(1) / p.m, inv_w = R(1) / w, inv_h = R(1) / h;
  R g_y, g_theta;
  if constexpr (kInverse) {
    g_y = -fma(cotangent, w, l * p.slope * inv_m) * inv_m * inv_h;
    g_theta = -cotangent * w;
  } else {
    g_y = cotangent;
    g_theta = fma(cotangent * h, p.m, l * p.slope * inv_m);
  }
  *y = select(inside, kInverse ? -g_y : g_theta * inv_w, c.closed ? R(0) : *y);
  const R g_x = -g_theta * inv_w, by_y = g_y * h, by_l = l * inv_m;
  const R g_a = fma(by_y, p.g_a, by_l * p.m_a), g_b = fma(by_y, p.g_b, by_l * p.m_b);
  R g_w = -fma(p.theta, g_theta, l) * inv_w, g_h = fma(g_y, p.left, l * inv_h);

  if constexpr (kLinear) {
    rq_softmax_adjoint<0>(row_h, bin.k, bin.scale_h, r_h, g_y, g_h, bin.e_h, c.unit_h, n,
                          [&](int j, R g) { grad[j] = g; });
  } else if constexpr (kCubic) {
    g_w = fma(g_a, start.own_w, fma(g_b, end.own_w, g_w));
    g_h = fma(g_a, start.own_h, fma(g_b, end.own_h, g_h));
    const auto axis = [&](const R* e, R r, R free, R knot, R own, R before, R after, R* to) {
      poly_softmax_adjoint(
          e, n, r, free,
          [&](int j) {
            const R near = select(I::equal(j + 1, bin.k), knot + before, select(I::equal(j - 1, bin.k), after, R(0)));
            return select(I::equal(j, bin.k), own, select(I::below(j + 1, bin.k), knot, near));
          },
          [&](int j, R g) { to[j] = g; });
    };
    axis(row, r_w, R(c.free_w * c.unit_w), g_x, g_w, g_a * start.next_w, g_b * end.next_w, grad);
    axis(row_h, r_h, R(c.free_h * c.unit_h), g_y, g_h, g_a * start.next_h, g_b * end.next_h, grad + n);
    grad[2 * n] = g_a * start.by_raw;
    grad[2 * n + 1] = g_b * end.by_raw;
  } else {
    // On axes of length 1 from here on.
    const T half = static_cast<T>(0.5), quarter = static_cast<T>(0.25);
    const R length_w(static_cast<T>(c.x.length)), length_h(static_cast<T>(c.y.length));
    const R s_k = fma(bin.e_w, d.scale, d.least), by_height = g_h * length_h;
    const R turn = (g_a - g_b) / densities;
    const R n0 = fma(turn, p.b, R(half) * by_height * s_k), n1 = fma(-turn, p.a, R(half) * by_height * s_k);
    const R knot_y = g_y * length_h, knot_x = fma(knot_y, d.minimum, g_x * length_w), by_sum = knot_y * d.gain;
    const R by_width = fma(R(half) * densities, by_height, g_w * length_w);
    R before(0), total(0);
    for (int j = 0; j < n; ++j) {
      const R part = d.mean(j) * d.width(j);
      total += part;
      before += select(I::below(j, bin.k), part, R(0));
    }
    const R by_gain = fma(before, knot_y, fma(v0, n0, v1 * n1)), by_area = -by_gain * d.gain / total;
    // Of V_j, but for what goes through c; and how much the ends' V get.
    const auto by_mean = [&](int j) { return d.width(j) * (by_area + select(I::below(j, bin.k), by_sum, R(0))); };
    const auto density = [&](int j) {
      R g = R(half) * ((j > 0 ? by_mean(j - 1) : R(0)) + (j < n ? by_mean(j) : R(0)));
      g += select(I::equal(j, bin.k), d.gain * n0, R(0)) + select(I::equal(j - 1, bin.k), d.gain * n1, R(0));
      return g;
    };
    const R by_ends = c.fixed_ends ? (density(0) + density(n)) / d.rest() : R(0);
    const auto width = [&](int j) {
      const R below = fma(by_sum, d.mean(j), knot_x);
      const R g =
          fma(by_area, d.mean(j), select(I::below(j, bin.k), below, select(I::equal(j, bin.k), by_width, R(0))));
      if (!c.fixed_ends) return g;
      if (j == 0 || j == n - 1) return fma(by_ends, R(quarter) * (d.at(j == 0 ? 1 : n - 1) + d.ends), g);
      return fma(by_ends, d.mean(j), g);
    };
    poly_softmax_adjoint(row, n, r_w, R(c.free_w * static_cast<T>(1 / RqUnits<R>::kAxis)), width,
                         [&](int j, R g) { grad[j] = g; });
    const int first = c.fixed_ends ? 1 : 0, knots = c.fixed_ends ? n - 1 : n + 1;
    for (int i = 0; i < knots; ++i) {
      const int j = i + first;
      R g = density(j);
      if (c.fixed_ends) {  // those of c: a quarter of the outer widths, half of the others
        const R left = R(j == 1 ? quarter : half) * d.width(j - 1), after = R(j == n - 1 ? quarter : half) * d.width(j);
        g = fma(by_ends, left + after, g);
      }
      const R soft = row[n + i];
      grad[n + i] = select(soft < R(T(1 << 30)), -g * expm1(-soft), R(0));
    }
  }
}

// Arrays of a call. In the backward grad_y and grad_log_det are given, and y is the gradient of x.
template <class S>
struct PolyArrays {
  using T = compute_t<S>;
  const S *x, *params, *grad_y;
  const T* grad_log_det;
  S* y;
  T* log_det;
  S* grad_params;
};

}  // namespace GF_BACKEND
}  // namespace gf
