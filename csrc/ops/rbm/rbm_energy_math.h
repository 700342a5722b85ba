// The hidden units' part of the free energy, for every Real.
//
//   F(v) = -a.v - sum_j softplus(x_j),  x = b + v W;   dF/dx_j = -sigmoid(x_j) = -p_j
// and so, with g the cotangent of F:
//   dL/dW = -v^T (g p),  dL/da = -g^T v,  dL/db = -g^T p,  dL/dv = -g (a + p W^T)
#pragma once

#include "common/real.h"

namespace gf {
inline namespace GF_BACKEND {

template <class R>
struct RbmUnit {
  R softplus, p;
};

// One exponential for both: t = exp(-|x|), softplus = max(x, 0) + log1p(t), p = 1 / (1 + t) or t / (1 + t).
template <class R>
GF_HD RbmUnit<R> rbm_unit(R x) {
  const R t = exp(-abs(x));
  const R q = R(1) / (R(1) + t);
  return {max(R(0), x) + log1p(t), select(x < R(0), t * q, q)};
}

}  // namespace GF_BACKEND
}  // namespace gf
