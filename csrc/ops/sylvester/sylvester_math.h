// Sylvester layers (van den Berg et al. 2018) and their adjoints, written once for every backend.
//
//   z' = z + Q R1 h,  h = tanh(a),  a = R2 Q^T z + b;   log|det dz'/dz| = sum_i log|q_i|,  q_i = 1 + s_i t_i
// with Q^T Q = I, R1 and R2 upper triangular, s = 1 - h^2 = dh/da and t_i = (R2 R1)_ii, by Sylvester's identity
// det(I + Q R1 S R2 Q^T) = det(I + S R2 R1).
//
// All that rows meet are the products U = Q R1, W = Q R2^T, both [D, M], and T = R2 R1: a layer is a planar one of M
// units, z' = z + U tanh(W^T z + b), and a row and layer cost 2 D M multiply-adds, with nothing triangular.
//
// Adjoint of (z, U, W, b, t) -> (z', log|det|). Let g be the cotangent of z', l that of log|det|. Each unit has
// planar's (planar_math.h) with (U^T g)_i in place of u.g and t_i in place of w.u: c_i = dL/dt_i and e_i = dL/da_i.
// Then
//   dL/dz = g + W e,  dL/db = e,  dL/dU = g h^T,  dL/dW = z e^T
//
// The inverse takes z' to z = z' - U h where a + T h = y = W^T z' + b: for Q^T Q = I these are the same a. T is upper
// triangular, so its last unit is a scalar equation, monotone where t_i >= -1, and the others follow one by one. The
// implicit function theorem, (I + T S) da = dy - dT h, gives from the cotangents g of z and l of -log|det|
//   (I + S T^T) e' = -e  (e as above), from the first unit: e'_i = -(e_i + s_i sum_{j<i} T_ji e'_j) / q_i
//   dL/dz' = g + W e',  dL/db = e',  dL/dU = -g h^T,  dL/dW = z' e'^T,  dL/dT = -e' h^T - diag(c)
// The sign of U, T and t's gradients is that of the step, so U is kept as -U in the inverse, and both directions are
// z += U h and dL/dU = g h^T.
//
// From U, W and T to the arguments, with dT = diag(c) in the forward:
//   dQ = dU R1^T + dW R2,  dR1 = Q^T dU + R2^T dT,  dR2 = dW^T Q + dT R1^T, of both the upper triangle
#pragma once

#include "common/real.h"
#include "ops/planar/planar_math.h"
#include "ops/sylvester/sylvester.h"

namespace gf {
inline namespace GF_BACKEND {

// A unit's argument of tanh, from w.z + b: in the inverse, from that less what the units behind it add.
template <class R>
GF_HD R sylvester_unit(bool inverse, R y, R t) {
  return inverse ? planar_solve(y, t) : y;
}

// c and e of a unit, from `ug` = U^T g with U of the step's sign; in the inverse e' as far as the unit alone goes.
template <class R>
GF_HD PlanarAdjoint<R> sylvester_adjoint(bool inverse, R h, R s, R t, R ug, R l) {
  const PlanarLayer<R> f{h, s, fma(s, t, R(1))};
  return inverse ? planar_adjoint<true>(f, t, -ug, l) : planar_adjoint<false>(f, t, ug, l);
}

// e' of the unit, with `others` = sum_{j<i} T_ji e'_j.
template <class R>
GF_HD R sylvester_substituted(R e, R s, R t, R others) {
  return e - s * others / fma(s, t, R(1));
}

// t of a layer, from T_ii. The inverse forgives what rounding alone put below -1.
template <class T>
GF_HD T sylvester_diagonal(bool inverse, T t, T storage_epsilon) {
  return inverse ? planar_invertible_wu(t, abs(t), storage_epsilon) : t;
}

}  // namespace GF_BACKEND
}  // namespace gf
