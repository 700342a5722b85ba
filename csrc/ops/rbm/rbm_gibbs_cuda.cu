// Block Gibbs sampling of an RBM on the GPU. A block owns 16 or 32 chains for all steps: their states are bits in
// shared memory, and only the weights are read, from the L2 cache. Fields are exact integers: three int8 products on
// tensor cores (states are 0 or 1, weights are split into signed bytes), put together in int32.
#include "common/mma.cuh"
#include "common/philox.h"
#include "common/states.h"
#include "ops/rbm/rbm_quantise.cuh"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;

struct ChainArgs {
  RbmDevice machine;
  const void* v;
  void *out_v, *out_h;
  const float* beta;
  bool beta_per_chain;
  const uint8_t* clamp;
  bool clamp_per_chain;
  const int64_t* seed;
  int64_t n_steps;
  uint32_t first_chain, first_step;
};

// One layer's bits in shared memory; an odd stride keeps rows of a warp in different banks.
struct Bits {
  unsigned* words;
  int stride;
  __device__ unsigned& at(int chain, int word) const { return words[chain * stride + word]; }
};

__device__ __forceinline__ int odd(int64_t words) { return static_cast<int>(words) | 1; }

// The low four bits of x as four bytes of 0 or 1.
__device__ __forceinline__ unsigned spread(unsigned x) { return ((x & 15u) * 0x00204081u) & 0x01010101u; }

struct HalfSweep {
  Bits in, out, held;  // held.words: null where nothing is clamped
  int in_words, out_words;
  int64_t n_out;
  const unsigned* fragments;
  const int* bias;
  uint32_t stream;
};

// All units of one layer, given those of the other. A warp draws 32 units of all the block's chains at a time.
template <int kTiles>
__device__ void half_sweep(const HalfSweep& h, const float* beta, float scale, uint64_t seed, uint32_t chain0,
                           uint32_t step) {
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  for (int word = warp_index(); word < h.out_words; word += kWarps) {
    int sums[kTiles][4][kRbmPlanes][4] = {};
    const uint4* fragments =
        reinterpret_cast<const uint4*>(h.fragments + static_cast<int64_t>(word) * h.in_words * kRbmFragment) + lane;
    uint4 next[2 * kRbmPlanes];
    GF_UNROLL
    for (int i = 0; i < 2 * kRbmPlanes; ++i) next[i] = fragments[i * kWarpSize];
    for (int chunk = 0; chunk < h.in_words; ++chunk) {
      uint4 b[2 * kRbmPlanes];
      GF_UNROLL
      for (int i = 0; i < 2 * kRbmPlanes; ++i) b[i] = next[i];
      fragments += kRbmFragment / 4;
      if (chunk + 1 < h.in_words) {
        GF_UNROLL
        for (int i = 0; i < 2 * kRbmPlanes; ++i) next[i] = fragments[i * kWarpSize];
      }
      GF_UNROLL
      for (int m = 0; m < kTiles; ++m) {
        const unsigned upper = h.in.at(16 * m + g, chunk) >> (4 * t);
        const unsigned lower = h.in.at(16 * m + g + 8, chunk) >> (4 * t);
        const unsigned a[4] = {spread(upper), spread(lower), spread(upper >> 16), spread(lower >> 16)};
        GF_UNROLL
        for (int i = 0; i < 2 * kRbmPlanes; ++i) {
          const unsigned left[2] = {b[i].x, b[i].y}, right[2] = {b[i].z, b[i].w};
          mma_m16n8k32_s8(sums[m][i % 2 * 2][i / 2], a, left);
          mma_m16n8k32_s8(sums[m][i % 2 * 2 + 1][i / 2], a, right);
        }
      }
    }

    const int64_t left = h.n_out - static_cast<int64_t>(word) * kRbmWord;
    const unsigned exist = left < kRbmWord ? (1u << left) - 1u : ~0u;
    GF_UNROLL
    for (int m = 0; m < kTiles; ++m) {
      const int upper = 16 * m + g, lower = upper + 8;
      unsigned bits[2] = {0, 0};
      GF_UNROLL
      for (int tile = 0; tile < 4; ++tile) {
        const int unit = word * static_cast<int>(kRbmWord) + tile * 8 + 2 * t;
        // Two lanes share the four words of a block: the even one draws those of the upper row, the odd one of the
        // lower.
        const bool odd_lane = t % 2 != 0;
        const PhiloxWords<uint32_t> drawn = philox<uint32_t>(chain0 + static_cast<uint32_t>(odd_lane ? lower : upper),
                                                             static_cast<uint32_t>(unit / 4), step, h.stream, seed);
        const uint32_t got0 = __shfl_xor_sync(kFullWarp, odd_lane ? drawn.w[0] : drawn.w[2], 1);
        const uint32_t got1 = __shfl_xor_sync(kFullWarp, odd_lane ? drawn.w[1] : drawn.w[3], 1);
        const uint32_t own0 = odd_lane ? drawn.w[2] : drawn.w[0], own1 = odd_lane ? drawn.w[3] : drawn.w[1];
        const uint32_t random[2][2] = {{odd_lane ? got0 : own0, odd_lane ? got1 : own1},
                                       {odd_lane ? own0 : got0, odd_lane ? own1 : got1}};
        GF_UNROLL
        for (int i = 0; i < 4; ++i) {  // the tile's register i: row i / 2, unit i % 2
          const auto& s = sums[m][tile];
          const unsigned field = static_cast<unsigned>(h.bias[unit + i % 2]) + static_cast<unsigned>(s[0][i]) +
                                 (static_cast<unsigned>(s[1][i]) << 8) + (static_cast<unsigned>(s[2][i]) << 16);
          const bool on = gibbs_accept<ScalarLane>(static_cast<int>(field), scale, beta[i / 2 ? lower : upper],
                                                   random[i / 2][i % 2]);
          bits[i / 2] |= static_cast<unsigned>(on) << (tile * 8 + 2 * t + i % 2);
        }
      }
      GF_UNROLL
      for (int row = 0; row < 2; ++row) {
        bits[row] |= __shfl_xor_sync(kFullWarp, bits[row], 1);
        bits[row] |= __shfl_xor_sync(kFullWarp, bits[row], 2);
      }
      if (t < 2) {
        const int chain = t == 0 ? upper : lower;
        unsigned& out = h.out.at(chain, word);
        const unsigned held = h.held.words ? h.held.at(chain, word) : 0u;
        out = (bits[t] & exist & ~held) | (out & held);
      }
    }
  }
}

template <class E>
__device__ void store_states(E* out, int64_t units, const Bits& bits, int words, int chain, E one) {
  const int lane = lane_index();
  for (int w = 0; w < words; ++w) {
    const int64_t unit = static_cast<int64_t>(w) * kRbmWord + lane;
    if (unit < units) out[unit] = (bits.at(chain, w) >> lane & 1u) ? one : E(0);
  }
}

template <class E, int kTiles>
__global__ void __launch_bounds__(kThreads) rbm_gibbs_kernel(ChainArgs f, StateCode<E> code) {
  constexpr int kChains = 16 * kTiles;
  const RbmSizes size = f.machine.size;
  const int words_v = static_cast<int>(f.machine.words_v()), words_h = static_cast<int>(f.machine.words_h());
  const Bits v{dynamic_shared<unsigned>(), odd(words_v)};
  const Bits h{v.words + kChains * v.stride, odd(words_h)};
  const Bits held{f.clamp ? h.words + kChains * h.stride : nullptr, v.stride};
  GF_SHARED(float, beta, [kChains]);
  GF_SHARED(int, bad, [kChains]);
  const int lane = lane_index();
  const int64_t chain0 = static_cast<int64_t>(blockIdx.x) * kChains;
  const bool lost = f.machine.scalars->lost != 0;

  for (int c = warp_index(); c < kChains; c += kWarps) {
    const int64_t chain = chain0 + c;
    const bool exists = chain < size.n;
    const E* in = static_cast<const E*>(f.v) + chain * size.nv;
    const uint8_t* mask = f.clamp + (f.clamp_per_chain ? chain * size.nv : 0);
    bool wrong = false;
    for (int w = 0; w < words_v; ++w) {
      const int64_t unit = static_cast<int64_t>(w) * kRbmWord + lane;
      const bool inside = exists && unit < size.nv;
      const E x = inside ? in[unit] : E(0);
      const bool on = x == code.one;
      wrong = wrong || (!on && (x & static_cast<E>(~code.sign)) != 0);
      const unsigned bits = __ballot_sync(kFullWarp, on);
      const unsigned fixed = f.clamp ? __ballot_sync(kFullWarp, inside && mask[unit] != 0) : 0u;
      if (lane == 0) {
        v.at(c, w) = bits;
        if (f.clamp) held.at(c, w) = fixed;
      }
    }
    const bool not_binary = __any_sync(kFullWarp, wrong) != 0;
    if (lane == 0) {
      const float value = exists ? f.beta[f.beta_per_chain ? chain : 0] : 0.0f;
      const bool bad_beta = magnitude_bits(value) >= 0x7f800000u;
      beta[c] = bad_beta ? 0.0f : value;
      bad[c] = not_binary || bad_beta;
      const int status = (not_binary ? kRbmNotBinary : 0) | (bad_beta ? kRbmBadBeta : 0);
      if (status) atomicOr(f.machine.status, status);
    }
  }
  __syncthreads();

  if (!lost) {
    const int e = f.machine.scalars->exponent;
    const float scale = power_of_two<float>(e < 100 ? e : 100);
    const uint64_t seed = static_cast<uint64_t>(*f.seed);
    const uint32_t first = f.first_chain + static_cast<uint32_t>(chain0);
    const HalfSweep up{
        v, h, Bits{nullptr, 0}, words_v, words_h, size.nh, f.machine.weights_h, f.machine.bias_h, kStreamRbmHidden};
    const HalfSweep down{
        h, v, held, words_h, words_v, size.nv, f.machine.weights_v, f.machine.bias_v, kStreamRbmVisible};
    for (int64_t s = 0; s < f.n_steps; ++s) {
      const uint32_t step = f.first_step + static_cast<uint32_t>(s);
      half_sweep<kTiles>(up, beta, scale, seed, first, step);
      __syncthreads();
      half_sweep<kTiles>(down, beta, scale, seed, first, step);
      __syncthreads();
    }
  }

  for (int c = warp_index(); c < kChains && chain0 + c < size.n; c += kWarps) {
    E* to_v = static_cast<E*>(f.out_v) + (chain0 + c) * size.nv;
    E* to_h = static_cast<E*>(f.out_h) + (chain0 + c) * size.nh;
    if (lost || bad[c]) {
      for (int64_t i = lane; i < size.nv; i += kWarpSize) to_v[i] = code.nan;
      for (int64_t j = lane; j < size.nh; j += kWarpSize) to_h[j] = code.nan;
    } else {
      store_states(to_v, size.nv, v, words_v, c, code.one);
      store_states(to_h, size.nh, h, words_h, c, code.one);
    }
  }
}

}  // namespace

void rbm_gibbs(const RbmGibbs& f) {
  const RbmWorkspace at(f.size);
  const RbmDevice machine(f, at);
  f.weight == DType::f64 ? launch_quantise<double>(machine, f.stream) : launch_quantise<float>(machine, f.stream);

  constexpr int64_t kSharedLimit = 64 * 1024;  // every architecture since Volta has it
  const int64_t words = (machine.words_v() | 1) * (f.clamp ? 2 : 1) + (machine.words_h() | 1);
  // Few chains: smaller blocks, and more of them.
  const bool large = f.size.n > 2048 && 32 * words * 4 <= kSharedLimit - 1024;
  const int64_t chains = large ? 32 : 16, shared = chains * words * 4;
  if (shared > kSharedLimit - 1024)
    throw std::invalid_argument(
        "rbm_gibbs: the states of 16 chains do not fit the GPU's shared memory; visible and "
        "hidden units together may be about 30,000");
  const ChainArgs args{machine,           f.v,    f.out_v,   f.out_h,       f.beta,      f.beta_per_chain, f.clamp,
                       f.clamp_per_chain, f.seed, f.n_steps, f.first_chain, f.first_step};
  const unsigned blocks = static_cast<unsigned>((f.size.n + chains - 1) / chains);
  dispatch_state(f.state, [&](auto code) {
    using E = decltype(code.one);
    if (large)
      launch("rbm_gibbs", rbm_gibbs_kernel<E, 2>, blocks, kThreads, static_cast<std::size_t>(shared), f.stream, args,
             code);
    else
      launch("rbm_gibbs", rbm_gibbs_kernel<E, 1>, blocks, kThreads, static_cast<std::size_t>(shared), f.stream, args,
             code);
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
