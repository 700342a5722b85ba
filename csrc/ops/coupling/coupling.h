// Affine coupling of N rows of D numbers: arguments and entry points of every backend.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/stream.h"

namespace gf {

// In the order of SCALE_MAPS in genfast/reference/coupling.py.
enum class ScaleMap : int { exp, sigmoid, softplus, tanh, atan, softclip, reciprocal_sigmoid };
constexpr int kScaleMaps = 7;

struct ScaleSpec {
  ScaleMap map;
  double clamp, offset, min_scale, gain;
  double limit;  // |log s| saturates here
};

// Element (i, j) of an [n, d] operand is data[i row + j col]: slices, chunks, interleaved columns and expanded rows are
// read where they lie.
struct Strided {
  const void* data;
  int64_t row, col;
};
struct StridedOut {
  void* data;
  int64_t row, col;
};

struct CouplingForward {
  int64_t n, d;
  DType dtype;
  bool inverse;
  ScaleSpec spec;
  Strided x;      // [n, d] the input, of either direction
  Strided shift;  // [n, d]
  Strided raw;    // [n, d] the raw scale
  void* y;        // [n, d] contiguous
  void* log_det;  // [n] compute type
  Stream stream;
};

struct CouplingBackward {
  int64_t n, d;
  DType dtype;
  bool inverse;
  ScaleSpec spec;
  Strided grad_y;        // [n, d]
  Strided grad_log_det;  // [n] compute type; col is not used
  Strided kept;  // [n, d] the side of the map before scale and shift: input of the forward, output of the inverse
  Strided raw;   // [n, d]
  void* grad_x;  // [n, d] contiguous
  StridedOut grad_shift;  // [n, d]; data is null where it is not wanted
  StridedOut grad_raw;    // [n, d]
  Stream stream;
};

}  // namespace gf

GF_DECLARE_BACKENDS(void coupling_forward(const CouplingForward&); void coupling_backward(const CouplingBackward&))
