// Planar flow of K layers over N rows of D numbers: arguments and entry points of every backend.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/stream.h"

namespace gf {

struct PlanarSizes {
  int64_t n, d, k;
};

struct PlanarForward {
  PlanarSizes size;
  DType dtype;
  bool inverse;       // z' -> z, layers K-1 ... 0
  const void* input;  // [n, d]
  const void* w;      // [k, d]
  const void* u;      // [k, d]
  const void* b;      // [k]
  void* output;       // [n, d]
  void* log_det;      // [n] compute type
  void* a;            // [k, n] compute type: w.z + b of every layer, for the backward; null: not wanted
  Stream stream;
};

struct PlanarBackward {
  PlanarSizes size;
  DType dtype;
  bool inverse;              // the adjoint of the inverse
  const void* input;         // [n, d]: what `a` is computed from anew where it was not kept (CPU, forward only)
  const void* output;        // [n, d] of the forward; used with `a`
  const void* a;             // [k, n] compute type; null: compute it anew
  const void* w;             // [k, d]
  const void* u;             // [k, d]
  const void* b;             // [k]
  const void* grad_output;   // [n, d]
  const void* grad_log_det;  // [n] compute type
  void* grad_input;          // [n, d]
  void* grad_w;              // [k, d]
  void* grad_u;              // [k, d]
  void* grad_b;              // [k]
  void* workspace;           // planar_workspace(size) numbers of the compute type
  Stream stream;
};

}  // namespace gf

GF_DECLARE_BACKENDS(void planar_forward(const PlanarForward&); void planar_backward(const PlanarBackward&))
