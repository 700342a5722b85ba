// Radial flow of K layers over N rows of D numbers: the arguments of both kernels, and entry points of every backend.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/stream.h"

namespace gf {

struct Radial {  // shapes and dtypes: radial_args.cpp
  int64_t n, d, k;
  DType dtype;
  bool inverse;
  const void *input, *center, *alpha, *beta;
  void *output, *log_det;
  const void *grad_output, *grad_log_det;
  void *grad_input, *grad_center, *grad_alpha, *grad_beta;
  void* workspace;
  Stream stream;

  // See common/row_op.h.
  template <class F>
  void parameters(F&& f) {
    f(center, grad_center, k * d), f(alpha, grad_alpha, k), f(beta, grad_beta, k);
  }
  GF_HD int64_t kept() const { return k; }
};

}  // namespace gf

GF_DECLARE_BACKENDS(void radial_forward(const Radial&); void radial_backward(const Radial&))
