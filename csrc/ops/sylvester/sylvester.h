// Sylvester flow of K layers with M units over N rows of D numbers: the arguments of both kernels, and entry points of
// every backend.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/stream.h"

namespace gf {

struct Sylvester {  // shapes and dtypes: sylvester_args.cpp
  int64_t n, d, k, m;
  DType dtype;
  bool inverse;
  const void *input, *q, *r1, *r2, *b;
  void *output, *log_det;
  const void *grad_output, *grad_log_det;
  void *grad_input, *grad_q, *grad_r1, *grad_r2, *grad_b;
  void* workspace;
  Stream stream;
};

}  // namespace gf

GF_DECLARE_BACKENDS(void sylvester_forward(const Sylvester&); void sylvester_backward(const Sylvester&))
