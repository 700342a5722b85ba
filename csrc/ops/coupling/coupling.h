// Affine coupling of N rows of D numbers: arguments and entry points of every backend.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/stream.h"
#include "common/strided.h"

namespace gf {

// In the order of SCALE_MAPS in genfast/reference/coupling.py.
enum class ScaleMap : int { exp, sigmoid, softplus, tanh, atan, softclip, reciprocal_sigmoid };
constexpr int kScaleMaps = 7;

struct ScaleSpec {
  ScaleMap map;
  double clamp, offset, min_scale, gain;
  double limit;  // |log s| saturates here
};

// How shift and raw scale lie in a row of 2 d packed numbers, in the order of LAYOUTS there.
enum class CouplingLayout : int { chunked_shift_scale, chunked_scale_shift, interleaved };
constexpr int kCouplingLayouts = 3;

// Shapes and dtypes: coupling_args.cpp. Either shift and scale are given or params, of which they are parts; the same
// holds for the gradients.
struct CouplingForward {
  int64_t n, d;
  DType dtype;
  CouplingLayout layout;
  bool inverse;
  ScaleSpec spec;
  Strided x;  // the input, of either direction
  Strided shift;
  Strided scale;  // the raw scale
  Strided params;
  void* y;
  void* log_det;
  Stream stream;
};

struct CouplingBackward {
  int64_t n, d;
  DType dtype;
  CouplingLayout layout;
  bool inverse;
  ScaleSpec spec;
  Strided grad_y, grad_log_det;
  Strided kept;  // the side of the map before scale and shift: input of the forward, output of the inverse
  Strided scale, params;
  void* grad_x;
  StridedOut grad_shift;  // data is null where it is not wanted
  StridedOut grad_scale, grad_params;
  Stream stream;
};

}  // namespace gf

GF_DECLARE_BACKENDS(void coupling_forward(const CouplingForward&); void coupling_backward(const CouplingBackward&))
