// Annealed importance sampling of an RBM: arguments and entry points of every backend.
#pragma once

#include "common/dtype.h"
#include "common/stream.h"
#include "ops/rbm/rbm.h"

namespace gf {

// Shapes and dtypes: rbm_ais_args.cpp.
struct RbmAis {
  RbmSizes size;  // n: runs
  DType dtype;
  int64_t n_steps;
  uint32_t first_run, first_step;
  const void *v, *W, *vbias, *hbias;
  const float* base;
  const float *betas, *next_betas;  // step s goes from betas[s] to next_betas[s]
  const int64_t* slope;             // a - base in units of slope_unit
  double slope_unit;
  const double* log_weights;  // what is added to; null: 0
  const int64_t* seed;
  void* out_v;
  double* out_log_weights;
  int32_t* workspace;  // RbmAisWorkspace(size)
  Stream stream;
};

// The parts of RbmWorkspace, and behind them those of the CPU.
struct RbmAisWorkspace : RbmWorkspace {
  int64_t offset;              // [64 panels_v] float: (1 - beta) base
  int64_t sums;                // [panels_h, chains, 2, lanes]: low and high halves of the sums over a panel's units
  int64_t slopes;              // [chains] int64: sums of the slope over the active units
  int64_t fields_h, fields_v;  // [panels, chains, 64]
  int64_t before_v, before_h;  // the bits that these fields belong to

  explicit RbmAisWorkspace(const RbmSizes& s) : RbmWorkspace(s) {
    offset = total;
    sums = offset + kRbmPanel * panels_v;
    slopes = sums + 2 * 16 * panels_h * chains;  // at most 16 lanes
    fields_h = slopes + 2 * chains;
    fields_v = fields_h + kRbmPanel * panels_h * chains;
    before_v = fields_v + kRbmPanel * panels_v * chains;
    before_h = before_v + 2 * panels_v * chains;
    total = before_h + 2 * panels_h * chains;
  }
};

}  // namespace gf

GF_DECLARE_BACKENDS(void rbm_ais(const RbmAis&))
