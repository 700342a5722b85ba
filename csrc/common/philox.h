// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"): four random words
// from a counter of four words and a key of two. There is no state, so the numbers depend on neither threads, nor batch
// splits, nor instruction set, nor device.
//
// Convention of the samplers: counter = (row, block, step, stream), key = (low, high) word of the seed. Block b of a
// row serves its units 4 b ... 4 b + 3, one word each. `step` numbers the steps of a chain, `stream` the purpose:
#pragma once

#include <cstdint>

#include "macros.h"

#if defined(__SSE2__) && !defined(__CUDACC__)
#include <immintrin.h>
#endif

namespace gf {
inline namespace GF_BACKEND {

enum PhiloxStream : uint32_t {
  kStreamRbmHidden = 1,
  kStreamRbmVisible = 2,
  kStreamBoltzmann = 3,       // units of a general machine
  kStreamBoltzmannOrder = 4,  // the order they are visited in
  kStreamIsing = 5,           // units of a coloured graph or lattice
  kStreamTempering = 6,       // swaps between temperatures
  kStreamStart = 7,           // states that chains start from
  kStreamAisHidden = 8,       // units of an RBM in annealed importance sampling
  kStreamAisVisible = 9,
  kStreamLayer = 16  // + layer: a deep machine's units, layer 0 the visible one
};

// U: uint32_t, or a vector of them.
template <class U>
struct PhiloxWords {
  U w[4];
};

GF_HD void multiply_wide(uint32_t a, uint32_t m, uint32_t& high, uint32_t& low) {
#if defined(__CUDA_ARCH__)
  high = __umulhi(a, m);
  low = a * m;
#else
  const uint64_t p = static_cast<uint64_t>(a) * m;
  high = static_cast<uint32_t>(p >> 32);
  low = static_cast<uint32_t>(p);
#endif
}

#if !defined(__CUDACC__)
// Vectors: the hardware multiplies the even lanes; the odd ones are shifted there.
template <class U>
GF_HD void multiply_wide(U a, uint32_t m, U& high, U& low) {
  low = a * m;
#if defined(__AVX512F__)
  if constexpr (sizeof(U) == 64) {
    const __m512i x = (__m512i)a, k = _mm512_set1_epi32(static_cast<int>(m));
    const __m512i even = _mm512_maskz_mul_epu32(0xff, x, k),
                  odd = _mm512_maskz_mul_epu32(0xff, _mm512_maskz_srli_epi64(0xff, x, 32), k);
    high = (U)_mm512_mask_blend_epi32(0xaaaa, _mm512_maskz_srli_epi64(0xff, even, 32), odd);
    return;
  }
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(U) == 32) {
    const __m256i x = (__m256i)a, k = _mm256_set1_epi32(static_cast<int>(m));
    const __m256i even = _mm256_mul_epu32(x, k), odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), k);
    high = (U)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    return;
  }
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(U) == 16) {
    const __m128i x = (__m128i)a, k = _mm_set1_epi32(static_cast<int>(m));
    const __m128i even = _mm_mul_epu32(x, k), odd = _mm_mul_epu32(_mm_srli_epi64(x, 32), k);
    const __m128i high_lanes = _mm_set_epi32(-1, 0, -1, 0);
    high = (U)_mm_or_si128(_mm_srli_epi64(even, 32), _mm_and_si128(odd, high_lanes));
    low = (U)_mm_or_si128(_mm_andnot_si128(high_lanes, even), _mm_slli_epi64(odd, 32));
    return;
  }
#endif
  for (unsigned i = 0; i < sizeof(U) / 4; ++i) high[i] = static_cast<uint32_t>((static_cast<uint64_t>(a[i]) * m) >> 32);
}
#endif

// c2 and c3 (step and stream) are the same for all lanes.
template <class U>
GF_HD PhiloxWords<U> philox(U row, U block, uint32_t step, uint32_t stream, uint64_t seed) {
  U c0 = row, c1 = block, c2 = U{} + step, c3 = U{} + stream;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    U high0, low0, high1, low1;
    multiply_wide(c0, 0xD2511F53u, high0, low0);
    multiply_wide(c2, 0xCD9E8D57u, high1, low1);
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace GF_BACKEND
}  // namespace gf
