// Gibbs sampling of a deep Boltzmann machine on the GPU. A block owns 16 or 32 chains for all steps, with the bits of
// all their layers in shared memory, those of the even layers before those of the odd ones (ops/rbm/rbm_sweep.cuh).
#include "common/states.h"
#include "ops/dbm/dbm.h"
#include "ops/rbm/rbm_quantise.cuh"
#include "ops/rbm/rbm_sweep.cuh"

namespace gf {
inline namespace GF_BACKEND {
namespace {

struct LayerArgs {
  int64_t units, first;  // of the layer, and where it starts in a row of states
  int word, words;       // its words of a chain's bits
  int input, inputs;     // those of its neighbours
  unsigned* fragments;
  int* bias;
};

struct ChainArgs {
  LayerArgs layer[kDbmLayers];
  int layers, words;
  int held;
  int64_t n, units, most;
  const void *states, *biases;
  void* out;
  const float* beta;
  bool beta_per_chain;
  const uint8_t* clamp;
  bool clamp_per_chain;
  const int64_t* seed;
  int64_t n_steps;
  uint32_t first_chain, first_step;
  int* sums;
  RbmScalars* scalars;
  int* status;
};

ChainArgs make_args(const DbmGibbs& f, const DbmWorkspace& at) {
  ChainArgs a{};
  a.layers = at.layers;
  const auto words = [&](int l) { return static_cast<int>((at.units[l] + kRbmWord - 1) / kRbmWord); };
  for (const int side : {0, 1})
    for (int l = side; l < at.layers; l += 2) {
      a.layer[l].word = a.words;
      a.layer[l].words = words(l);
      a.words += words(l);
    }
  for (int l = 0; l < at.layers; ++l) {
    LayerArgs& layer = a.layer[l];
    layer.units = at.units[l];
    layer.first = at.first[l];
    layer.input = a.layer[l > 0 ? l - 1 : 1].word;
    layer.inputs = (l > 0 ? words(l - 1) : 0) + (l + 1 < at.layers ? words(l + 1) : 0);
    layer.fragments = reinterpret_cast<unsigned*>(f.workspace + at.weights[l]);
    layer.bias = f.workspace + at.bias[l];
  }
  a.held = f.held;
  a.n = f.n;
  a.units = f.units;
  a.most = at.most_weights();
  a.states = f.states;
  a.biases = f.biases;
  a.out = f.out;
  a.beta = f.beta;
  a.beta_per_chain = f.beta_per_chain;
  a.clamp = f.clamp;
  a.clamp_per_chain = f.clamp_per_chain;
  a.seed = f.seed;
  a.n_steps = f.n_steps;
  a.first_chain = f.first_chain;
  a.first_step = f.first_step;
  a.sums = f.workspace + at.sums;
  a.scalars = reinterpret_cast<RbmScalars*>(f.workspace + at.scalars);
  a.status = f.status ? f.status : f.workspace + at.scalars + 15;
  return a;
}

// Layers l and l + 1 as an RBM, whose weights are a part of those of each side.
RbmDevice pair_of(const DbmGibbs& f, const ChainArgs& a, int l) {
  const LayerArgs &below = a.layer[l], &above = a.layer[l + 1];
  const int64_t bytes = f.weight == DType::f64 ? 8 : 4;
  const char* biases = static_cast<const char*>(f.biases);
  RbmDevice p;
  p.size = RbmSizes{f.n, below.units, above.units};
  p.W = f.weights(l);
  p.vbias = biases + bytes * below.first;
  p.hbias = biases + bytes * above.first;
  p.weights_h = above.fragments;
  p.weights_v = below.fragments + static_cast<int64_t>(below.inputs - above.words) * kRbmFragment;
  p.bias_h = above.bias;
  p.bias_v = below.bias;
  p.row_sums = a.sums + below.first;
  p.column_sums = a.sums + above.first;
  p.scalars = a.scalars;
  p.status = a.status;
  p.most = a.most;
  p.chunks_h = above.inputs;
  p.chunks_v = below.inputs;
  return p;
}

__global__ void dbm_clear_kernel(ChainArgs a) {
  for (int64_t i = grid_thread(); i < a.units; i += grid_threads()) a.sums[i] = 0;
  if (grid_thread() == 0) {
    *a.scalars = RbmScalars{0, 0, 0, 0};
    *a.status = 0;
  }
}

struct Strangers {
  int count[kDbmLayers];  // units of the other side that a layer has no weights to
};

// One block: the exponent, and the biases.
template <class T>
__global__ void dbm_exponent_kernel(ChainArgs a, Strangers strangers) {
  const T* biases = static_cast<const T*>(a.biases);
  const unsigned long long of_weights = a.scalars->largest_weight, of_biases = a.scalars->largest_bias;
  const unsigned long long all = of_weights > of_biases ? of_weights : of_biases;
  if (all >= kInfinityBits) {
    if (threadIdx.x == 0) {
      a.scalars->lost = 1;
      atomicOr(a.status, static_cast<int>(kRbmNotFinite));
    }
    return;
  }
  const FixedPointScale scale(all, a.most);
  const T unit = scale.template unit<T>();
  int largest = 0;
  for (int l = 0; l < a.layers; ++l)
    for (int64_t i = threadIdx.x; i < a.layer[l].units; i += blockDim.x) {
      const int64_t at = a.layer[l].first + i;
      const int sum = a.sums[at] + fixed_point_bound(biases[at], unit) + strangers.count[l];
      largest = sum > largest ? sum : largest;
    }
  const int e = scale.fixed_point_exponent(block_max(largest), of_weights);
  const T inverse = power_of_two<T>(-e);
  if (threadIdx.x == 0) a.scalars->exponent = e;
  for (int l = 0; l < a.layers; ++l) {
    const LayerArgs& layer = a.layer[l];
    for (int64_t i = threadIdx.x; i < layer.words * kRbmWord; i += blockDim.x)
      layer.bias[i] = i < layer.units ? round_even(biases[layer.first + i] * inverse) : 0;
  }
}

template <class T>
void launch_quantise(const DbmGibbs& f, const DbmWorkspace& at, const ChainArgs& a) {
  Strangers strangers{};
  for (int l = 0; l < a.layers; ++l) strangers.count[l] = static_cast<int>(at.strangers(l));
  launch("dbm_clear", dbm_clear_kernel, blocks_for(a.units, 256, 64), 256, 0, f.stream, a);
  for (int l = 0; l + 1 < a.layers; ++l) launch_magnitude<T>(pair_of(f, a, l), f.stream);
  for (int l = 0; l + 1 < a.layers; ++l) launch_bounds<T>(pair_of(f, a, l), f.stream);
  launch("dbm_exponent", dbm_exponent_kernel<T>, 1, 512, 0, f.stream, a, strangers);
  for (int l = 0; l + 1 < a.layers; ++l) launch_fragments<T>(pair_of(f, a, l), f.stream);
}

template <class E, int kTiles>
__global__ void __launch_bounds__(kSweepThreads) dbm_gibbs_kernel(ChainArgs f, StateCode<E> code) {
  constexpr int kChains = 16 * kTiles;
  const Bits bits{dynamic_shared<unsigned>(), odd(f.words)};
  const Bits held{f.clamp ? bits.words + kChains * bits.stride : nullptr, bits.stride};
  GF_SHARED(float, beta, [kChains]);
  GF_SHARED(int, bad, [kChains]);
  const int lane = lane_index();
  const int64_t chain0 = static_cast<int64_t>(blockIdx.x) * kChains;
  const bool lost = f.scalars->lost != 0;

  for (int c = warp_index(); c < kChains; c += kSweepWarps) {
    const int64_t chain = chain0 + c;
    const bool exists = chain < f.n;
    bool wrong = false;
    for (int l = 0; l < f.layers; ++l) {
      const LayerArgs& layer = f.layer[l];
      const E* in = static_cast<const E*>(f.states) + chain * f.units + layer.first;
      const uint8_t* mask = f.clamp + (f.clamp_per_chain ? chain * f.units : 0) + layer.first;
      for (int w = 0; w < layer.words; ++w) {
        const int64_t unit = static_cast<int64_t>(w) * kRbmWord + lane;
        const bool inside = exists && unit < layer.units;
        const E x = inside ? in[unit] : E(0);
        const bool on = x == code.one;
        wrong = wrong || (!on && (x & static_cast<E>(~code.sign)) != 0);
        const unsigned word = __ballot_sync(kFullWarp, on);
        const unsigned fixed = f.clamp ? __ballot_sync(kFullWarp, inside && mask[unit] != 0) : 0u;
        if (lane == 0) {
          bits.at(c, layer.word + w) = word;
          if (f.clamp) held.at(c, layer.word + w) = fixed;
        }
      }
    }
    const bool not_binary = __any_sync(kFullWarp, wrong) != 0;
    if (lane == 0) {
      const float value = exists ? f.beta[f.beta_per_chain ? chain : 0] : 0.0f;
      const bool bad_beta = magnitude_bits(value) >= 0x7f800000u;
      beta[c] = bad_beta ? 0.0f : value;
      bad[c] = not_binary || bad_beta;
      const int status = (not_binary ? kRbmNotBinary : 0) | (bad_beta ? kRbmBadBeta : 0);
      if (status) atomicOr(f.status, status);
    }
  }
  __syncthreads();

  if (!lost) {
    const int e = f.scalars->exponent;
    const float scale = power_of_two<float>(e < 100 ? e : 100);
    const uint64_t seed = static_cast<uint64_t>(*f.seed);
    const uint32_t first = f.first_chain + static_cast<uint32_t>(chain0);
    for (int64_t s = 0; s < f.n_steps; ++s) {
      for (int side = 1; side >= 0; --side) {
        for (int l = side; l < f.layers; l += 2) {
          if (f.held >> l & 1) continue;
          const LayerArgs& layer = f.layer[l];
          const HalfSweep h{Bits{bits.words + layer.input, bits.stride},
                            Bits{bits.words + layer.word, bits.stride},
                            Bits{f.clamp ? held.words + layer.word : nullptr, bits.stride},
                            layer.inputs,
                            layer.words,
                            layer.units,
                            layer.fragments,
                            layer.bias,
                            kStreamLayer + static_cast<uint32_t>(l)};
          half_sweep<kTiles>(h, beta, scale, seed, first, f.first_step + static_cast<uint32_t>(s));
        }
        __syncthreads();
      }
    }
  }

  for (int c = warp_index(); c < kChains && chain0 + c < f.n; c += kSweepWarps) {
    E* to = static_cast<E*>(f.out) + (chain0 + c) * f.units;
    if (lost || bad[c]) {
      for (int64_t i = lane; i < f.units; i += kWarpSize) to[i] = code.nan;
    } else {
      for (int l = 0; l < f.layers; ++l) {
        const LayerArgs& layer = f.layer[l];
        store_states(to + layer.first, layer.units, Bits{bits.words + layer.word, bits.stride}, layer.words, c,
                     code.one);
      }
    }
  }
}

}  // namespace

void dbm_gibbs(const DbmGibbs& f) {
  const DbmWorkspace at(f);
  const ChainArgs args = make_args(f, at);
  f.weight == DType::f64 ? launch_quantise<double>(f, at, args) : launch_quantise<float>(f, at, args);

  constexpr int64_t kSharedLimit = 64 * 1024;  // every architecture since Volta has it
  const int64_t words = (args.words | 1) * (f.clamp ? 2 : 1);
  // Few chains: smaller blocks, and more of them.
  const bool large = f.n > 2048 && 32 * words * 4 <= kSharedLimit - 1024;
  const int64_t chains = large ? 32 : 16, shared = chains * words * 4;
  if (shared > kSharedLimit - 1024)
    throw std::invalid_argument(
        "dbm_gibbs: the states of 16 chains do not fit the GPU's shared memory; all layers together may have about "
        "30,000 units, or 15,000 where some are clamped");
  const unsigned blocks = static_cast<unsigned>((f.n + chains - 1) / chains);
  dispatch_state(f.state, [&](auto code) {
    using E = decltype(code.one);
    if (large)
      launch("dbm_gibbs", dbm_gibbs_kernel<E, 2>, blocks, kSweepThreads, static_cast<std::size_t>(shared), f.stream,
             args, code);
    else
      launch("dbm_gibbs", dbm_gibbs_kernel<E, 1>, blocks, kSweepThreads, static_cast<std::size_t>(shared), f.stream,
             args, code);
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
