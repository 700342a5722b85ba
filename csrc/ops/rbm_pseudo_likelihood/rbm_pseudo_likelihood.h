// The pseudo-log-likelihood of an RBM, all visible units in one pass: arguments and entry points of every backend.
//
// PL(v) = -sum_i softplus(u_i),  u_i = s_i a_i + sum_j [softplus(x_j + s_i W_ij) - softplus(x_j)],  s = 1 - 2 v,
// with the hidden fields x = b + vW. With p = sigmoid(x), q = 1 - p and E = exp(W) the sum over j is that of
//   log(q_j + p_j E_ij) where v_i = 0, and of log(p_j + q_j E_ij) - W_ij where v_i = 1:
// a product of positive factors, and no exponential for each i and j. Factors lie in [exp(-M) / 2, exp(M)], M = max|W|,
// so that a number of them can be multiplied before a logarithm is due.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/stream.h"

namespace gf {

// Shapes and dtypes: rbm_pseudo_likelihood_args.cpp.
struct RbmPseudoLikelihood {
  int64_t n, nv, nh;
  DType dtype;
  const void *v, *vbias;
  const void* fields;    // x
  const void* weights;   // E, or W where no factors may be multiplied
  const void* row_sums;  // of W
  int64_t factors;       // that can be multiplied; 0: the difference of softplus is taken instead
  void* out;
  void* workspace;  // p and q, [2, n, nh]
  Stream stream;
};

}  // namespace gf

GF_DECLARE_BACKENDS(void rbm_pseudo_likelihood(const RbmPseudoLikelihood&))
