// Rational-quadratic spline of independent numbers, each with parameters of its own or shared with others: arguments
// and entry points.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/stream.h"

namespace gf {

// Numbers [groups, numbers] read parameters [groups, rows, ...]: number i of its group reads row (i / inner) % rows.
struct RqSplineSizes {
  int64_t groups, numbers, rows, inner;
  int64_t bins, slopes;  // as many slopes as the tails want; with linear ones more, those past `bins` not read
  int64_t packed;        // a row of params
  // Numbers from one row of parameters to the next: bins, bins, slopes, or the row of a packed tensor three times.
  int64_t stride_w, stride_h, stride_d;
  int64_t count, all_rows;  // of numbers and of rows, over all groups
  int64_t repeats;          // numbers that read one row
};

// What lies outside [left, right], and which slopes are given: the identity and the bins - 1 inner ones; the identity
// and `bins`, of which the first is that of both ends; nothing (NaN) and all bins + 1; the identity and all.
enum class RqTails : int32_t { linear, circular, none, own };

// How raw slopes and logits are read: as nflows does, nflows with enable_identity_init, zuko, Pyro.
enum class RqDialect : int32_t { nflows, identity, zuko, pyro };

struct RqSplineOptions {
  double left, right, bottom, top;
  double min_width, min_height, min_slope;
  RqTails tails;
  RqDialect dialect;
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
  double* workspace;  // rq_spline_shared.h
  Stream stream;
};

}  // namespace gf

GF_DECLARE_BACKENDS(void rq_spline_forward(const RqSplineForward&); void rq_spline_backward(const RqSplineBackward&))
