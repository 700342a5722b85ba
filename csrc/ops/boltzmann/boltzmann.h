// General Boltzmann machine of d units: arguments and entry points of every backend.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/stream.h"

namespace gf {

// Reasons why states cannot be drawn, as bits of BoltzmannGibbs::status.
enum BoltzmannStatus : int32_t {
  kBoltzmannNotFinite = 1,
  kBoltzmannBadState = 2,
  kBoltzmannBadTemperature = 4,
  kBoltzmannAsymmetric = 8,
  kBoltzmannDiagonal = 16
};

// Shapes and dtypes: boltzmann_args.cpp.
struct BoltzmannGibbs {
  int64_t n, d, n_sweeps;  // chains, units
  DType state, weight;
  bool spins;         // states are -1 and 1 instead of 0 and 1
  bool random_order;  // units are visited in a permutation of their own in every sweep
  uint32_t first_chain, first_step;
  const void *s, *J, *bias;
  const float* temperature;  // one for each chain, or one for all
  bool temperature_per_chain;
  const float* schedule;  // factors of the temperature, one for each sweep
  const uint8_t* clamp;   // one row for each chain, or one for all; null: none
  bool clamp_per_chain;
  const int64_t* seed;
  void* out;
  int32_t* status;     // null on a GPU: not wanted
  int32_t* workspace;  // BoltzmannWorkspace
  Stream stream;
};

// On the CPU weights lie in panels of so many columns: those of a block of rows are one piece of memory.
constexpr int64_t kBoltzmannPanel = 128;

// Where things lie in BoltzmannGibbs::workspace, in units of int32; every part starts at a multiple of 64 bytes.
struct BoltzmannWorkspace {
  int64_t stride;   // of a row of fields: an odd number of cache lines, so that rows differ in cache sets
  int64_t rows;     // row i is what the fields change by when unit i is turned on: [panels, d, 128]; GPU: [d, stride]
  int64_t base;     // [stride]: the fields when all units are off
  int64_t scalars;  // [16]
  int64_t order;    // [n_sweeps, d], on a GPU
  int64_t chains;   // [n, 2 stride]: fields and states, on a GPU whose shared memory does not hold them
  int64_t total;

  BoltzmannWorkspace(const BoltzmannGibbs& f, bool gpu, bool chains_wanted) {
    stride = ((f.d + 15) / 16 | 1) * 16;
    total = 0;
    rows = take(gpu ? f.d * stride : (f.d + kBoltzmannPanel - 1) / kBoltzmannPanel * f.d * kBoltzmannPanel);
    base = take(stride);
    scalars = take(16);
    order = take(gpu && f.random_order ? f.n_sweeps * f.d : 0);
    chains = take(chains_wanted ? f.n * 2 * stride : 0);
  }

 private:
  int64_t take(int64_t count) {
    const int64_t at = total;
    total += (count + 15) / 16 * 16;
    return at;
  }
};

// A warp of the GPU keeps the fields of its chain, and a byte for each state, in shared memory where they fit: every
// architecture since Volta has 64 KB a block. The emulation says so earlier, so that tests come to both cases.
inline int64_t boltzmann_shared_bytes(int64_t d) { return (d + 31) / 32 * 32 * 5; }
inline int64_t boltzmann_shared_limit(bool emulated) { return emulated ? 6 * 1024 : 63 * 1024; }

}  // namespace gf

GF_DECLARE_BACKENDS(void boltzmann_gibbs(const BoltzmannGibbs&))
