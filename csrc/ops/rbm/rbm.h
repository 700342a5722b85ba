// Restricted Boltzmann machine of n_visible (nv) and n_hidden (nh) units: arguments and entry points of every backend.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/stream.h"

namespace gf {

struct RbmSizes {
  int64_t n, nv, nh;  // chains or rows, visible units, hidden units
};

// Reasons why states cannot be drawn, as bits of RbmGibbs::status; and (from kRbmCoarse on) why rbm_cd left its work to
// others: fixed point rounds too much for statistics, start values that are no probabilities, another device.
enum RbmStatus : int32_t {
  kRbmNotFinite = 1,
  kRbmNotBinary = 2,
  kRbmBadBeta = 4,
  kRbmCoarse = 8,
  kRbmNotProbability = 16,
  kRbmElsewhere = 32
};

// Shapes and dtypes: rbm_args.cpp.
struct RbmGibbs {
  RbmSizes size;
  DType state, weight;
  int64_t n_steps;
  uint32_t first_chain, first_step;
  const void *v, *W, *vbias, *hbias;
  const float* beta;  // one for each chain, or one for all
  bool beta_per_chain;
  const uint8_t* clamp;  // one row for each chain, or one for all; null: none
  bool clamp_per_chain;
  const int64_t* seed;
  void *out_v, *out_h;
  int32_t* status;     // null on a GPU: not wanted
  int32_t* workspace;  // RbmWorkspace(size)
  Stream stream;
};

// A layer is cut into panels of 64 units; bits of states are kept in words of 32 units, two a panel. Weights lie in
// strips of 16 output units.
constexpr int64_t kRbmPanel = 64, kRbmWord = 32, kRbmStrip = 16;

// Where things lie in RbmGibbs::workspace, in units of int32; every part starts at a multiple of 64 bytes. Shapes are
// those of the CPU; on CUDA weights are tensor-core fragments (rbm_gibbs_cuda.cu), states stay in shared memory, and
// bounds are sums of rows [64 panels_v] and columns [64 panels_h].
struct RbmWorkspace {
  int64_t panels_v, panels_h, chains;  // the layers in panels, and n rounded up
  int64_t weights_h;                   // [4 panels_h, 64 panels_v, 16]: the fields of hidden units
  int64_t weights_v;                   // [4 panels_v, 64 panels_h, 16]: the fields of visible units
  int64_t bias_h, bias_v;              // [64 panels_h], [64 panels_v]
  int64_t state_v, state_h, clamp;     // bits: chains times 2 panels_v, 2 panels_h, 2 panels_v words
  int64_t beta;                        // [chains] float
  int64_t bad;                         // [chains]: the chain's states cannot be drawn
  int64_t bounds;                      // [panels_h, 64 panels_v] and [64 panels_h]: sums of gibbs.h's bounds
  int64_t scalars;                     // [16]; the last is the status where the call wants none
  int64_t total;

  explicit RbmWorkspace(const RbmSizes& s) {
    panels_v = (s.nv + kRbmPanel - 1) / kRbmPanel;
    panels_h = (s.nh + kRbmPanel - 1) / kRbmPanel;
    chains = (s.n + 63) / 64 * 64;
    const int64_t units_v = kRbmPanel * panels_v, units_h = kRbmPanel * panels_h;
    total = 0;
    weights_h = take(units_h * units_v);
    weights_v = take(units_h * units_v);
    bias_h = take(units_h);
    bias_v = take(units_v);
    state_v = take(chains * 2 * panels_v);
    state_h = take(chains * 2 * panels_h);
    clamp = take(chains * 2 * panels_v);
    beta = take(chains);
    bad = take(chains);
    bounds = take(panels_h * units_v + units_h);
    scalars = take(16);
  }

 private:
  int64_t take(int64_t count) {
    const int64_t at = total;
    total += (count + 15) / 16 * 16;
    return at;
  }
};

// F = -a.v - sum_j softplus(x_j) of rows v, with the hidden fields x = b + v W.
struct RbmFreeEnergy {
  RbmSizes size;
  DType dtype;  // f32 or f64
  const void *v, *vbias;
  void* fields;  // x; becomes sigmoid(x) = P(h = 1 | v)
  void* energy;
  Stream stream;
};

// out = init + S M for a matrix S that is mostly zeros, of float32.
struct RbmSparseProduct {
  int64_t rows, inner, columns;
  const float* left;  // S, [inner, rows] where `transposed`
  bool transposed;
  const float* right;  // M
  const float* scale;  // column k of S is multiplied by -scale[k]; null: not
  const float* init;   // null: 0
  float* out;
  Stream stream;
};

// A step of contrastive divergence: k sweeps of chains, and the gradients in W, vbias and hbias of
// mean F(data) - mean F(chains). Without data they are those of -mean F(chains).
struct RbmCd {
  RbmSizes size;  // n chains
  int64_t n_data;
  const float* data;   // 0 and 1; null: none
  const float* start;  // of the chains; null: the data
  bool draws;          // where start is not 0 or 1, it is the probability of 1
  const float *W, *vbias, *hbias;
  const int64_t* seed;
  int64_t n_steps;
  uint32_t first_chain, first_step;
  float *out_v, *grad_W, *grad_vbias, *grad_hbias;
  float* loss;  // null: not wanted
  int32_t* status;
  int32_t* workspace;  // RbmCdWorkspace
  Stream stream;
};

// Where things lie in RbmCd::workspace, in units of int32, behind those of its machine.
struct RbmCdWorkspace {
  RbmWorkspace machine;
  int64_t words_data, words;  // words of 32 rows: of the data, and of the data with the chains behind them
  int64_t data;               // bits of the data, as those of the chains
  int64_t columns;            // the same bits by unit: 64 panels_v rows of `words`
  int64_t p;                  // [4 panels_h, 32 words, 16] float: P(h = 1), times the weight of its row
  int64_t softplus;           // [panels_h, 32 words] float: sums over the units of a panel
  int64_t zeros;              // [64 panels_h]
  int64_t total;

  explicit RbmCdWorkspace(const RbmCd& f) : machine(f.size) {
    words_data = (f.n_data + 31) / 32;
    words = words_data + (f.size.n + 31) / 32;
    const int64_t panels_v = machine.panels_v, panels_h = machine.panels_h;
    data = machine.total;
    columns = data + (f.n_data + 63) / 64 * 64 * 2 * panels_v;
    p = columns + kRbmPanel * panels_v * words;
    softplus = p + kRbmPanel * panels_h * kRbmWord * words;
    zeros = softplus + panels_h * kRbmWord * words;
    total = zeros + kRbmPanel * panels_h;
  }
};

// Updates by persistent contrastive divergence, in place, for batches of rows: edges[i] to edges[i + 1].
struct RbmPcdUpdates {
  int64_t n_starts, entries, n_edges, nv, nh, width, m;
  DType dtype;
  const int64_t *starts, *indices;  // the rows' entries that are not 0 (CSR)
  const void* values;
  const int64_t* edges;
  void *W, *vbias, *hbias;  // [nv, width], [nv], [width]: hidden units padded by zeros to a multiple of 16
  void* chains;             // 0/1 hidden states
  const int64_t* seed;
  double learning_rate;
  int64_t n_batches;
  uint32_t first_step;
  Stream stream;
};

}  // namespace gf

// rbm_sparse_product returns false, and writes nothing, where a dense product is the better choice.
GF_DECLARE_BACKENDS(void rbm_gibbs(const RbmGibbs&); void rbm_free_energy(const RbmFreeEnergy&);
                    bool rbm_sparse_product(const RbmSparseProduct&); void rbm_cd(const RbmCd&);
                    void rbm_pcd_updates(const RbmPcdUpdates&))
