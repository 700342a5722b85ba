// The CDF of a mixture of logistic or normal distributions, and its inverse, of independent numbers, each with
// parameters of its own or shared with others: arguments and entry points.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/stream.h"

namespace gf {

// See common/shared_rows.h.
struct MixtureSizes {
  int64_t groups, numbers, rows, inner;
  int64_t components;
  int64_t packed;  // a row of params
  int64_t stride;  // from one row of logits, means or log-scales to the next
  int64_t count, all_rows, repeats;
};

enum class MixtureOutput : int { probability, logit, probit };

struct MixtureOptions {
  bool normal;  // components: normal, else logistic
  MixtureOutput output;
  bool inverse;
};

// Shapes and dtypes: mixture_cdf_args.cpp. Either logits, means and log_scales are given or params, whose rows they are
// parts of; the same holds for the gradients.
struct MixtureForward {
  MixtureSizes size;
  MixtureOptions options;
  DType dtype;
  const void* x;
  const void *logits, *means, *log_scales, *params;
  void *y, *log_det;
  Stream stream;
};

struct MixtureBackward {
  MixtureSizes size;
  MixtureOptions options;
  DType dtype;
  const void* x;
  const void *logits, *means, *log_scales, *params;
  const void* y;  // of the inverse
  const void *grad_y, *grad_log_det;
  void* grad_x;
  void *grad_logits, *grad_means, *grad_log_scales, *grad_params;
  double* workspace;  // sums of shared rows
  Stream stream;
};

}  // namespace gf

GF_DECLARE_BACKENDS(void mixture_cdf_forward(const MixtureForward&); void mixture_cdf_backward(const MixtureBackward&))
