// Radial layers (Rezende & Mohamed 2015) and their adjoints, written once for every backend.
//
//   z' = c + q (z - c),  q = 1 + beta h,  h = 1 / (alpha + r),  r = |z - c|
//   log|det dz'/dz| = (D - 1) log|q| + log|p|,  p = d(r q)/dr = 1 + alpha beta h^2
// With a = alpha h, t = r h and s = (alpha + beta) h, of which none is negative where the layer is invertible, q = t +
// s and p = t (1 + a) + a s: sums without cancellation, also at the edge beta = -alpha.
//
// Adjoint of (z, c, alpha, beta) -> (z', log|det|). Let g be the cotangent of z', l that of log|det|, e = z - c and
// v = g.e. From dh = -h^2 (dr + dalpha), with Q = v + l (D - 1) / q = dL/dq and P = l / p = dL/dp:
//   dL/dr = -beta h^2 (Q + 2 a P) = w r,  dL/dalpha = w r + beta h^2 P,  dL/dbeta = h (Q + a P)
//   dL/dz = q g + w e,  dL/dc = g - dL/dz
//
// Adjoint of the inverse (z', c, alpha, beta) -> (z, -log|det|), with g the cotangent of z. The cotangent g' of z' is
// the one that the adjoint above takes to g, and the parameters' change sign: v = p v' - beta h^2 r (Q' + 2 a P - v')
// gives v' = g'.e, so w; and then
//   dL/dz' = g' = (g - w e) / q,  dL/dc = g - g'
#pragma once

#include "common/real.h"
#include "ops/radial/radial.h"

namespace gf {
inline namespace GF_BACKEND {

template <class R>
struct RadialLayer {
  R r, h, a, m, q, p;  // m = beta h
  R scale;             // of z - c to z' - c, or back
};

// From the squared distance to the center, in the inverse that of z'. Distances above 4e18 (float32) count as that.
template <class R>
GF_HD RadialLayer<R> radial_layer(bool inverse, R square, R alpha, R beta) {
  using T = scalar_t<R>;
  const R sum = alpha + beta;
  R r = sqrt(min(R(Limits<T>::max / 16), square));
  if (inverse) {
    // r q = y: r^2 + (alpha + beta - y) r = alpha y, in units in which alpha + y = 1.
    const R unit = R(1) / (alpha + r), y = r * unit, a = alpha * unit, b = sum * unit - y;
    const R root = sqrt(fma(b, b, R(4) * a * y)), large = root + abs(b);
    r = select(b > R(0), R(2) * y * (a / large), R(T(0.5)) * large) / unit;
    r = select((alpha > R(0)) & (sum >= R(0)), r, R(T(__builtin_nanf(""))));
  }
  const R h = R(1) / (alpha + r), a = alpha * h, t = r * h, s = sum * h, q = t + s;
  // At the edge beta = -alpha the center itself has q = 0, and stays where it is.
  return {r, h, a, beta * h, q, fma(t, R(1) + a, a * s), inverse ? select(q == R(0), R(0), R(1) / q) : q};
}

template <class R>
GF_HD R radial_log_det(const RadialLayer<R>& f, int64_t dim) {
  const R log_p = log(abs(f.p));
  if (dim == 1) return log_p;
  // log|q|, of which D - 1 add up: near 1 what q = 1 + m rounds away is added again.
  const auto near = abs(f.m) < R(scalar_t<R>(0.5));
  const R q = select(near, R(1) + f.m, f.q), log_q = log(abs(q)) + select(near, (f.m - (q - R(1))) / q, R(0));
  return fma(R(static_cast<scalar_t<R>>(dim - 1)), log_q, log_p);
}

// g becomes scale g + pull e, and the gradient of c is what that takes away from g: -(change g + pull e).
template <class R>
struct RadialAdjoint {
  R scale, change, pull, alpha, beta;
};

// `f` is that of the forward in either direction.
template <class R>
GF_HD RadialAdjoint<R> radial_adjoint(bool inverse, const RadialLayer<R>& f, R v, R l, int64_t dim) {
  const R P = l / f.p, of_log = fma(R(2) * f.a, P, R(static_cast<scalar_t<R>>(dim - 1)) * l / f.q);
  if (inverse) v = fma(f.m * f.r * f.h, of_log, v) / f.p;
  const R total = v + of_log, of_r = -f.m * f.h * total, w = select(f.r == R(0), R(0), of_r / f.r);
  const R alpha = fma(f.m * f.h, P, of_r), beta = f.h * fma(-f.a, P, total);
  if (!inverse) return {f.q, f.m, w, alpha, beta};
  const R back = R(1) / f.q;
  return {back, -f.m * back, -w * back, -alpha, -beta};
}

// All layers over a block of rows (common/row_op.h); log|det| of the map. `kept`, where it is wanted, gets z - c of
// each layer, z on the side before the layer's forward.
template <bool kKeep, class Rows, class R = typename Rows::Real>
GF_ROWS R radial_layers(const Radial& f, const Rows& rows, R* z, R* kept) {
  R log_det(0);
  for (int64_t i = 0; i < f.k; ++i) {
    const int64_t k = f.inverse ? f.k - 1 - i : i;
    const auto center = [&](int64_t c) { return R(rows.parameter(f.center, k * f.d + c, c)); };
    R square(0);
    rows.each([&](int64_t c, int64_t at) {
      const R e = z[at] - center(c);
      square = fma(e, e, square);
    });
    const R alpha(rows.parameter(f.alpha, k)), beta(rows.parameter(f.beta, k));
    const RadialLayer<R> layer = radial_layer(f.inverse, rows.row_sum(square), alpha, beta);
    if (!kKeep) log_det += radial_log_det(layer, f.d);
    rows.each([&](int64_t c, int64_t at) {
      const R e = z[at] - center(c), moved = layer.scale * e;
      if (kKeep) kept[k * rows.numbers() + at] = f.inverse ? moved : e;
      z[at] = center(c) + moved;
    });
  }
  return f.inverse ? -log_det : log_det;
}

template <class Rows, class R = typename Rows::Real>
GF_ROWS void forward_rows(const Radial& f, Rows& rows, R* z) {
  rows.load(f.input, z);
  rows.store_sum(f.log_det, radial_layers<false>(f, rows, z, static_cast<R*>(nullptr)));
  rows.store(f.output, z);
}

// The sums are gradients of center, alpha and beta. The layers run again: z rebuilt from the output would have its
// rounding divided by q in every layer.
template <class Rows, class R = typename Rows::Real>
GF_ROWS void backward_rows(const Radial& f, Rows& rows, R* grad, R* kept, typename Rows::Number* sums) {
  rows.load(f.input, grad);
  radial_layers<true>(f, rows, grad, kept);
  rows.load(f.grad_output, grad);
  const R l = rows.load_sum(f.grad_log_det);
  for (int64_t i = 0; i < f.k; ++i) {
    const int64_t k = f.inverse ? i : f.k - 1 - i;
    const R* e = kept + k * rows.numbers();
    R square(0), v(0);
    rows.each([&](int64_t, int64_t at) {
      square = fma(e[at], e[at], square);
      v = fma(grad[at], e[at], v);
    });
    // Rows that do not exist lie at distance 1, where nothing is infinite, and their zero cotangents stay zero.
    square = rows.existing(rows.row_sum(square), 1);
    const R alpha(rows.parameter(f.alpha, k)), beta(rows.parameter(f.beta, k));
    const RadialLayer<R> layer = radial_layer(false, square, alpha, beta);
    const RadialAdjoint<R> adjoint = radial_adjoint(f.inverse, layer, rows.row_sum(v), l, f.d);
    rows.each([&](int64_t c, int64_t at) {
      const R pull = adjoint.pull * e[at];
      rows.add(sums + k * f.d + c, -fma(adjoint.change, grad[at], pull), c);
      grad[at] = fma(adjoint.scale, grad[at], pull);
    });
    rows.add_once(sums + f.k * f.d + k, adjoint.alpha);
    rows.add_once(sums + f.k * f.d + f.k + k, adjoint.beta);
  }
  rows.store(f.grad_input, grad);
}

}  // namespace GF_BACKEND
}  // namespace gf
