// Deep Boltzmann machine: layers of 0/1 units, each with weights to the next: arguments and entry points of every
// backend.
//
// Even layers have weights to odd ones only, so the machine is a restricted Boltzmann machine between its even and its
// odd layers, of which the weights between layers that are no neighbours are 0 and are not kept. Layers of one side
// lie beside each other, in their order: the neighbours of a layer are adjacent there, one input without a gap.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/stream.h"
#include "ops/rbm/rbm.h"

namespace gf {

constexpr int kDbmLayers = 8;

// Shapes and dtypes: dbm_args.cpp.
struct DbmGibbs {
  int64_t n, units;                        // chains, units of all layers
  int64_t n0, n1, n2, n3, n4, n5, n6, n7;  // units of each layer, 0 where there is none
  DType state, weight;
  int64_t n_steps;
  uint32_t first_chain, first_step;
  int32_t held;                                  // bit l: all of layer l stays as it is
  const void* states;                            // the layers beside each other, from the visible one up
  const void *W0, *W1, *W2, *W3, *W4, *W5, *W6;  // W_l: between layer l and the next
  const void* biases;
  const float* beta;  // one for each chain, or one for all
  bool beta_per_chain;
  const uint8_t* clamp;  // one row for each chain, or one for all; null: none
  bool clamp_per_chain;
  const int64_t* seed;
  void* out;
  int32_t* status;     // bits of RbmStatus; null on a GPU: not wanted
  int32_t* workspace;  // DbmWorkspace
  Stream stream;

  int64_t layer_units(int l) const {
    const int64_t all[kDbmLayers] = {n0, n1, n2, n3, n4, n5, n6, n7};
    return all[l];
  }
  const void* weights(int l) const {
    const void* all[kDbmLayers - 1] = {W0, W1, W2, W3, W4, W5, W6};
    return all[l];
  }
  int layers() const {
    int count = 0;
    while (count < kDbmLayers && layer_units(count) > 0) ++count;
    return count;
  }
};

// Where things lie in DbmGibbs::workspace, in units of int32, as in RbmWorkspace. Words are those of the CPU, two a
// panel; on CUDA weights are tensor-core fragments and states stay in shared memory.
struct DbmWorkspace {
  int layers;
  int64_t side_units[2];                           // of even layers, and of odd ones
  int64_t side_words[2];                           // that a chain's states take
  int64_t chains;                                  // n rounded up
  int64_t units[kDbmLayers], first[kDbmLayers];    // of each layer, and where it starts in a row of states
  int64_t panels[kDbmLayers], inputs[kDbmLayers];  // of the layer, and of its neighbours together
  int64_t word[kDbmLayers];                        // its first word in its side's states
  int64_t weights[kDbmLayers];                     // [4 panels, 64 inputs, 16]: the fields of its units
  int64_t bias[kDbmLayers];                        // [64 panels]
  int64_t state[2], clamp[2];                      // bits: chains times side_words
  int64_t beta, bad;                               // [chains], as in RbmWorkspace
  int64_t row_sums;                                // of one matrix: [panels of its columns, 64 panels of its rows]
  int64_t sums;                                    // [units of all layers]: sums of gibbs.h's bounds
  int64_t scalars;                                 // [16]; the last is the status where the call wants none
  int64_t total;

  explicit DbmWorkspace(const DbmGibbs& f) {
    layers = f.layers();
    chains = (f.n + 63) / 64 * 64;
    total = 0;
    int64_t all = 0, most = 0;
    for (int side = 0; side < 2; ++side) side_units[side] = side_words[side] = 0;
    for (int l = 0; l < layers; ++l) {
      units[l] = f.layer_units(l);
      first[l] = all;
      panels[l] = (units[l] + kRbmPanel - 1) / kRbmPanel;
      word[l] = side_words[l % 2];
      all += units[l];
      side_units[l % 2] += units[l];
      side_words[l % 2] += 2 * panels[l];
    }
    for (int l = 0; l < layers; ++l) {
      inputs[l] = (l > 0 ? panels[l - 1] : 0) + (l + 1 < layers ? panels[l + 1] : 0);
      weights[l] = take(kRbmPanel * panels[l] * kRbmPanel * inputs[l]);
      bias[l] = take(kRbmPanel * panels[l]);
      if (l + 1 < layers && panels[l] * panels[l + 1] > most) most = panels[l] * panels[l + 1];
    }
    for (int side = 0; side < 2; ++side) {
      state[side] = take(chains * side_words[side]);
      clamp[side] = take(f.clamp ? chains * side_words[side] : 0);
    }
    beta = take(chains);
    bad = take(chains);
    row_sums = take(kRbmPanel * most);
    sums = take(all);
    scalars = take(16);
  }

  // Units on the other side that layer l has no weights to: bounds of weights 0.
  int64_t strangers(int l) const {
    int64_t count = side_units[1 - l % 2];
    if (l > 0) count -= units[l - 1];
    if (l + 1 < layers) count -= units[l + 1];
    return count;
  }
  int64_t most_weights() const { return side_units[0] > side_units[1] ? side_units[0] : side_units[1]; }
  // Where the weights to layer l + 1 start in the input of layer l, in panels: behind those to layer l - 1.
  int64_t above(int l) const { return l > 0 ? panels[l - 1] : 0; }

 private:
  int64_t take(int64_t count) {
    const int64_t at = total;
    total += (count + 15) / 16 * 16;
    return at;
  }
};

// The mean-field fixed point of the hidden layers, numbered from 0 here.
//
// A layer's field is what its unit gets from all others; its mean the sigmoid of that. One iteration sets the means of
// layers 0, 2, ..., then those of layers 1, 3, .... What has changed by more than kMeanFieldRest of the tolerance is
// added to the fields of the neighbours, the rest waits until it has added up: so the work is that of the means that
// move. A row is done when no mean has changed by more than the tolerance.
struct DbmMeanField {
  int64_t n, units;                    // rows, hidden units
  int64_t n1, n2, n3, n4, n5, n6, n7;  // units of each hidden layer, 0 where there is none
  DType dtype;
  const void *U1, *U2, *U3, *U4, *U5, *U6;  // weights between a hidden layer and the next
  int64_t max_iterations;
  double tolerance;
  void *fields, *means;  // [n, units], of each other at the start: the fields are overwritten
  int64_t* n_iterations;
  void* workspace;  // mean_field_workspace numbers
  Stream stream;

  int64_t layer_units(int l) const {
    const int64_t all[kDbmLayers - 1] = {n1, n2, n3, n4, n5, n6, n7};
    return all[l];
  }
  const void* weights(int l) const {
    const void* all[kDbmLayers - 2] = {U1, U2, U3, U4, U5, U6};
    return all[l];
  }
};

constexpr double kMeanFieldRest = 0.1;

// Weights on the CPU lie in tiles of this many output units, padded.
constexpr int64_t kMeanFieldTile = 128;
constexpr int64_t mean_field_tiles(int64_t units) { return (units + kMeanFieldTile - 1) / kMeanFieldTile; }

// Numbers that a call needs: what of the means is in the fields, the changes (values and, on the CPU, their units) and,
// on the CPU, the weights in tiles in both directions.
inline int64_t mean_field_workspace(const DbmMeanField& f, bool gpu) {
  int64_t total = (gpu ? 2 : 3) * f.n * f.units + kMeanFieldTile;
  for (int l = 0; l + 2 < kDbmLayers && !gpu; ++l)
    total += kMeanFieldTile * (mean_field_tiles(f.layer_units(l + 1)) * f.layer_units(l) +
                               mean_field_tiles(f.layer_units(l)) * f.layer_units(l + 1));
  return total;
}

}  // namespace gf

GF_DECLARE_BACKENDS(void dbm_gibbs(const DbmGibbs&); void dbm_mean_field(const DbmMeanField&))
