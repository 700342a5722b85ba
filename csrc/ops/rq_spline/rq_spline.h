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
  int64_t packed;  // a row of params
};

struct RqSplineOptions {
  double bound, min_width, min_height, min_slope;
  bool inverse;
};

// Shapes and dtypes: rq_spline_args.cpp. Either widths, heights and slopes are given or params, whose rows they are
// parts of; the same holds for the gradients.
struct RqSplineForward {
  RqSplineSizes size;
  RqSplineOptions options;
  DType dtype;
  const void* x;
  const void *widths, *heights, *slopes, *params;
  void *y, *log_det;
  Stream stream;
};

struct RqSplineBackward {
  RqSplineSizes size;  // strides of the gradients too
  RqSplineOptions options;
  DType dtype;
  const void* x;
  const void *widths, *heights, *slopes, *params;
  const void *grad_y, *grad_log_det;
  void* grad_x;
  void *grad_widths, *grad_heights, *grad_slopes, *grad_params;
  Stream stream;
};

}  // namespace gf

GF_DECLARE_BACKENDS(void rq_spline_forward(const RqSplineForward&); void rq_spline_backward(const RqSplineBackward&))
