// Half a sweep of Gibbs sampling on the GPU: the bits of one layer, in shared memory, given those of the other.
#pragma once

#include "common/gibbs.h"
#include "common/mma.cuh"
#include "common/philox.h"
#include "ops/rbm/rbm_quantise.cuh"

namespace gf {
inline namespace GF_BACKEND {

constexpr int kSweepThreads = 256, kSweepWarps = kSweepThreads / kWarpSize;

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

// All units of one layer, given those of the other. A warp draws 32 units of all the block's chains at a time:
// accept(field, tile, row, unit, word) is the new state of a unit of the block's chain 16 tile + 8 row + lane / 4.
template <int kTiles, class Accept>
__device__ void half_sweep(const HalfSweep& h, uint64_t seed, uint32_t chain0, uint32_t step, Accept&& accept) {
  const int lane = lane_index(), g = lane / 4, t = lane % 4;
  for (int word = warp_index(); word < h.out_words; word += kSweepWarps) {
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
          const bool on = accept(static_cast<int>(field), m, i / 2, unit + i % 2, random[i / 2][i % 2]);
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

template <int kTiles>
__device__ void half_sweep(const HalfSweep& h, const float* beta, float scale, uint64_t seed, uint32_t chain0,
                           uint32_t step) {
  const int first = lane_index() / 4;
  half_sweep<kTiles>(h, seed, chain0, step, [&](int field, int tile, int row, int, uint32_t word) {
    return gibbs_accept<ScalarLane>(field, scale, beta[16 * tile + 8 * row + first], word);
  });
}

template <class E>
__device__ void store_states(E* out, int64_t units, const Bits& bits, int words, int chain, E one) {
  const int lane = lane_index();
  for (int w = 0; w < words; ++w) {
    const int64_t unit = static_cast<int64_t>(w) * kRbmWord + lane;
    if (unit < units) out[unit] = (bits.at(chain, w) >> lane & 1u) ? one : E(0);
  }
}

}  // namespace GF_BACKEND
}  // namespace gf
