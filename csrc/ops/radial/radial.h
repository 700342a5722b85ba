// Radial flow of K layers over N rows of D numbers: the arguments of both kernels, and entry points of every backend.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/stream.h"

namespace gf {

// Shapes and dtypes: radial_args.cpp.
struct Radial {
  int64_t n, d, k;
  DType dtype;
  bool inverse;
  const void *input, *center, *alpha, *beta;
  void *output, *log_det;  // of the forward
  const void *grad_output, *grad_log_det;
  void *grad_input, *grad_center, *grad_alpha, *grad_beta;
  void* workspace;  // sums of each part of the rows; on a GPU also z - center of every layer, for the rows in flight
  Stream stream;
};

// What is summed over rows: gradients of center [k, d], alpha [k] and beta [k].
GF_HD int64_t radial_sums(const Radial& f) { return f.k * f.d + 2 * f.k; }

}  // namespace gf

GF_DECLARE_BACKENDS(void radial_forward(const Radial&); void radial_backward(const Radial&))
