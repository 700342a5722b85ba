// One planar layer (Rezende & Mohamed 2015) and its adjoints, the scalar part; written once for every Real.
//
//   z' = z + u h,  h = tanh(a),  a = w.z + b;   log|det dz'/dz| = log|q|,  q = 1 + s (w.u),  s = 1 - h^2 = dh/da
//
// Adjoint of (z, w, u, b) -> (z', log|q|). Let g be the cotangent of z', l that of log|q|, and c = l s / q. From
// ds/da = -2 h s:
//   t  = dL/da = s (u.g) - 2 h (w.u) c
//   dL/dz = g + t w,  dL/db = t,  dL/dw = t z + c u,  dL/du = h g + c w
//
// Adjoint of the inverse (z', w, u, b) -> (z, -log|q|), with g the cotangent of z. The implicit function theorem and
// Sherman-Morrison's formula for (I + s u w^T)^-T give, with t as above for the cotangents (g, l):
//   t' = -t / q,  dL/dz' = g' = g + t' w,  dL/db = t',  dL/dw = t' z - c u,  dL/du = -h g' - c w
#pragma once

#include "common/real.h"

namespace gf {
inline namespace GF_BACKEND {

template <class R>
struct PlanarLayer {
  R h, s, q;
};

// h = E / (E + 2) and s = 4 (E + 1) / (E + 2)^2 with E = expm1(2 |a|): exact to the last bits in both tails, where
// 1 - h^2 would lose all of them. Past |a| = 20 (s < 2e-17) both are constant.
template <class R>
GF_HD PlanarLayer<R> planar_layer(R a, R wu) {
  const R y = min(R(20), abs(a));
  const R e = expm1(y + y);
  const R r = R(1) / (e + R(2));
  const R t = e * r;
  const R s = R(4) * (e + R(1)) * r * r;
  return {select(a < R(0), -t, t), s, fma(s, wu, R(1))};
}

// c and t of the derivation above.
template <class R>
struct PlanarAdjoint {
  R c, t;
};

template <bool kInverse, class R>
GF_HD PlanarAdjoint<R> planar_adjoint(const PlanarLayer<R>& f, R wu, R ug, R l) {
  const R c = l * f.s / f.q;
  const R t = f.s * ug - R(2) * f.h * wu * c;
  return {c, kInverse ? -t / f.q : t};
}

// w.u for the inverse. A u stored in S digits can put w.u below -1 by the rounding of its own products, and the sum
// adds its own; `magnitude` = sum |w_d u_d| sets the scale of both. Such a layer counts as one at the edge, w.u = -1.
template <class T>
GF_HD T planar_invertible_wu(T wu, T magnitude, T storage_epsilon) {
  const T tolerance = (storage_epsilon + T(16) * Limits<T>::epsilon) * magnitude;
  return wu < T(-1) && wu >= T(-1) - tolerance ? T(-1) : wu;
}

// Solves a + (w.u) tanh(a) = y for a, by Newton's method kept inside a bracket. The left side is monotone for
// w.u >= -1; for w.u < -1 the layer is not invertible and the answer is NaN. A lane stops when it has converged, so
// that a row's result does not depend on its neighbours.
template <class R>
GF_HD R planar_solve(R y, R wu) {
  using T = scalar_t<R>;
  const R reach = abs(wu);
  R low = y - reach, high = y + reach;
  // The root has the sign of y, and lies between y / (1 + wu) and y - wu sign(y).
  R a = y / (R(1) + max(R(0), wu));
  a = max(low, min(high, a));
  const T tolerance = T(2) * Limits<T>::epsilon;
  auto active = abs(a) >= R(0);
  for (int i = 0; i < 100; ++i) {
    const PlanarLayer<R> f = planar_layer(a, wu);
    const R residual = fma(wu, f.h, a) - y;
    const auto above = residual > R(0);
    high = select(above, a, high);
    low = select(above, low, a);
    R next = a - residual / f.q;
    const R middle = R(T(0.5)) * low + R(T(0.5)) * high;
    next = select((next >= low) & (next <= high), next, middle);
    next = select(residual == R(0), a, next);  // also where q = 0: the triple root at a = 0 of w.u = -1
    const auto moved = abs(next - a) > R(tolerance) * abs(next);
    a = select(active, next, a);
    active = active & moved;
    if (!any(active)) break;
  }
  return select(wu >= R(-1), a, R(T(__builtin_nanf(""))));
}

}  // namespace GF_BACKEND
}  // namespace gf
