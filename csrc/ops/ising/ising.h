// Gibbs sampling of a machine on a graph, colour by colour: arguments and entry points.
//
// The graph is symmetric and in CSR; columns ascend in every row. `order` lists the units colour by colour, those of
// colour c from offsets[c] to offsets[c + 1]; a unit's place there tells its random word: word place % 4 of Philox at
// (chain, place / 4, step, kStreamIsing). The field is the bias, to which weights times states are added in the order
// of the row, in float32; z = (2 field) beta for states -1 and 1, field beta for 0 and 1.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/stream.h"
#include "ops/ising/ising_status.h"

namespace gf {

struct IsingGibbs {
  int64_t n, units, pointers, edges, offset_count;  // pointers: units + 1, offset_count: n_colours + 1
  int64_t beta_sweeps, beta_chains;                 // the shape of beta: each 1, or as many as there are
  DType state;
  bool spin;      // states are -1 and 1; else 0 and 1
  bool validate;  // look for the like of each edge too
  int64_t n_colours, n_sweeps;
  uint32_t first_chain, first_step;
  const void* s;
  const int64_t *row_ptr, *columns;
  const float *weights, *bias;
  const int64_t *order, *offsets;
  const float* beta;
  const uint8_t* clamp;  // one row for each chain, or one for all; null: none
  bool clamp_per_chain;
  const int64_t* seed;
  void* out;
  int32_t* status;  // null on a GPU: not wanted
  int32_t* workspace;
  Stream stream;
};

// On a GPU: the status, colours of units, and the bits of 32 chains a word where they do not fit shared memory.
constexpr int64_t kIsingShared = 40 * 1024;

inline int64_t ising_workspace(const IsingGibbs& f, bool gpu) {
  if (!gpu) return 0;
  return 16 + f.units + (4 * f.units > kIsingShared ? (f.n + 31) / 32 * f.units : 0);
}

}  // namespace gf

GF_DECLARE_BACKENDS(void ising_gibbs(const IsingGibbs&))
