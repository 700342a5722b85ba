// Rational-quadratic spline of n independent numbers, each with its own parameters: arguments and entry points.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/stream.h"

namespace gf {

struct RqSplineSizes {
  int64_t n, bins, slopes;  // slopes >= bins - 1; those past `bins` are not read
  // Numbers from one row of parameters to the next: bins, bins, slopes, or the row of a packed tensor three times.
  int64_t stride_w, stride_h, stride_d;
};

struct RqSplineOptions {
  double bound, min_width, min_height, min_slope;
  bool inverse;
};

struct RqSplineForward {
  RqSplineSizes size;
  RqSplineOptions options;
  DType dtype;
  const void* x;        // [n]
  const void* widths;   // [n, bins]
  const void* heights;  // [n, bins]
  const void* slopes;   // [n, slopes]
  void* y;              // [n]
  void* log_det;        // [n] compute type
  Stream stream;
};

struct RqSplineBackward {
  RqSplineSizes size;  // strides of the gradients too
  RqSplineOptions options;
  DType dtype;
  const void* x;             // [n]
  const void* widths;        // [n, bins]
  const void* heights;       // [n, bins]
  const void* slopes;        // [n, slopes]
  const void* grad_y;        // [n]
  const void* grad_log_det;  // [n] compute type
  void* grad_x;              // [n]
  void* grad_widths;         // [n, bins]
  void* grad_heights;        // [n, bins]
  void* grad_slopes;         // [n, slopes]
  Stream stream;
};

}  // namespace gf

GF_DECLARE_BACKENDS(void rq_spline_forward(const RqSplineForward&); void rq_spline_backward(const RqSplineBackward&))
