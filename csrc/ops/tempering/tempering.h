// Replica exchange between the neighbouring levels of n independent ladders of k levels: arguments and entry points.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/stream.h"

namespace gf {

enum TemperingStatus : int32_t { kTemperingBadOrder = 1 };

// Shapes and dtypes: tempering_args.cpp.
struct TemperingSwap {
  int64_t n, k, pairs;     // pairs = k - 1
  const double* energies;  // of the replicas; without betas: the log ratios of the pairs, the last column unused
  const double* betas;     // of the levels, or null
  const int64_t* order;    // the replica at each level; null: replica i is at level i
  const int64_t* seed;
  uint32_t first_chain, step;
  int64_t* out_order;
  float* probability;  // of swapping each pair
  int32_t* status;     // null on a GPU: not wanted
  Stream stream;
};

}  // namespace gf

GF_DECLARE_BACKENDS(void tempering_swap(const TemperingSwap&))
