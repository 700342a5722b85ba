// Planar flow of K layers over N rows of D numbers: arguments and entry points of every backend.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/stream.h"

namespace gf {

struct PlanarSizes {
  int64_t n, d, k;
};

// Shapes and dtypes: planar_args.cpp.
struct PlanarForward {
  PlanarSizes size;
  DType dtype;
  bool inverse;  // z' -> z, layers K-1 ... 0
  const void *input, *w, *u, *b;
  void *output, *log_det;
  void* a;  // w.z + b of every layer, for the backward; null: not wanted
  Stream stream;
};

struct PlanarBackward {
  PlanarSizes size;
  DType dtype;
  bool inverse;        // the adjoint of the inverse
  const void* input;   // what `a` is computed from anew where it was not kept (forward only)
  const void* output;  // of the forward; used with `a`
  const void* a;       // null: compute it anew
  const void *w, *u, *b;
  const void *grad_output, *grad_log_det;
  void *grad_input, *grad_w, *grad_u, *grad_b;
  void* workspace;  // a chunk's sums for each chunk of rows; on a GPU also what is computed anew
  Stream stream;
};

// The numbers that a chunk of rows sums: gradients of w and u ([k, d] each) and of b ([k]), and c of planar_math.h
// ([k]).
GF_HD int64_t planar_sums(const PlanarSizes& s) { return 2 * s.k * s.d + 2 * s.k; }
// A GPU's forward, run again: a, output and log_det.
inline int64_t planar_recomputed(const PlanarSizes& s) { return s.k * s.n + s.n * s.d + s.n; }

}  // namespace gf

GF_DECLARE_BACKENDS(void planar_forward(const PlanarForward&); void planar_backward(const PlanarBackward&))
