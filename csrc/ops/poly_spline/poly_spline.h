// Monotone splines of polynomial pieces: linear, quadratic and cubic; each number with a row of parameters of its own.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/stream.h"

namespace gf {

// What a row of parameters holds, K bins: K heights; K widths and K + 1 densities at the knots, or the K - 1 inner
// ones; K widths, K heights and the slopes at both ends.
enum class PolyKind : int32_t { linear, quadratic, cubic };

constexpr int64_t kPolyMostBins = 1024;

struct PolySplineOptions {
  int64_t bins;
  double left, right, bottom, top;
  double min_width, min_height;
  PolyKind kind;
  bool closed;  // NaN outside; else the identity
  bool inverse;
};

// Shapes and dtypes: poly_spline_args.cpp.
struct PolySplineForward {
  int64_t n, size;  // rows of parameters, and their length
  PolySplineOptions options;
  DType dtype;
  const void *x, *params;
  void *y, *log_det;
  Stream stream;
};

struct PolySplineBackward {
  int64_t n, size;
  PolySplineOptions options;
  DType dtype;
  const void *x, *params, *grad_y, *grad_log_det;
  void *grad_x, *grad_params;
  Stream stream;
};

}  // namespace gf

GF_DECLARE_BACKENDS(void poly_spline_forward(const PolySplineForward&);
                    void poly_spline_backward(const PolySplineBackward&))
