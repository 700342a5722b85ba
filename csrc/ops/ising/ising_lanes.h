// Random words for one register of lanes.
#pragma once

#include <cstdint>

#include "common/gibbs_lanes.h"
#include "common/philox.h"

namespace gf {
inline namespace GF_BACKEND {

// Philox at (rows, blocks, step, stream). Where there is a wide multiplication of every second lane, the lanes stay
// apart until the end: the upper halves hold what the multiplication does not read.
GF_HD PhiloxWords<WordLanes> philox_lanes(WordLanes rows, WordLanes blocks, uint32_t step, uint32_t stream,
                                          uint64_t seed) {
#if defined(__AVX512F__)
  using V = __m512i;
  const auto shift = [](V x) { return _mm512_maskz_srli_epi64(0xff, x, 32); };
  const auto product = [](V x, V m) { return _mm512_maskz_mul_epu32(0xff, x, m); };
  const auto splat = [](uint32_t x) { return _mm512_set1_epi64(static_cast<int64_t>(x)); };
  const auto xor3 = [](V a, V b, V c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); };
  const auto join = [](V even, V odd) {
    return (WordLanes)_mm512_mask_blend_epi32(0xaaaa, even, _mm512_maskz_slli_epi64(0xff, odd, 32));
  };
#elif defined(__AVX2__)
  using V = __m256i;
  const auto shift = [](V x) { return _mm256_srli_epi64(x, 32); };
  const auto product = [](V x, V m) { return _mm256_mul_epu32(x, m); };
  const auto splat = [](uint32_t x) { return _mm256_set1_epi64x(static_cast<int64_t>(x)); };
  const auto xor3 = [](V a, V b, V c) { return _mm256_xor_si256(_mm256_xor_si256(a, c), b); };
  const auto join = [](V even, V odd) { return (WordLanes)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa); };
#endif
#if defined(__AVX2__)
  V c0[2] = {(V)rows, shift((V)rows)}, c1[2] = {(V)blocks, shift((V)blocks)};
  V c2[2] = {splat(step), splat(step)}, c3[2] = {splat(stream), splat(stream)};
  const V m0 = splat(0xD2511F53u), m1 = splat(0xCD9E8D57u);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const V key0 = splat(k0), key1 = splat(k1);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const V p0 = product(c0[i], m0), p1 = product(c2[i], m1);
      c0[i] = xor3(shift(p1), c1[i], key0);
      c1[i] = p1;
      c2[i] = xor3(shift(p0), c3[i], key1);
      c3[i] = p0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{join(c0[0], c0[1]), join(c1[0], c1[1]), join(c2[0], c2[1]), join(c3[0], c3[1])}};
#else
  return philox(rows, blocks, step, stream, seed);
#endif
}

}  // namespace GF_BACKEND
}  // namespace gf
