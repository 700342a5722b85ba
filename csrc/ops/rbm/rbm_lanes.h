// The SIMD lanes of the RBM's CPU kernels: one register of int32, and what GCC's vector extensions leave out.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/macros.h"
#include "common/pack.h"

namespace gf {
inline namespace GF_BACKEND {

constexpr int kLanes = kVectorBytes / 4;

struct VectorLane {
  typedef float F __attribute__((vector_size(kVectorBytes)));
  typedef int32_t I __attribute__((vector_size(kVectorBytes)));
  typedef uint32_t U __attribute__((vector_size(kVectorBytes)));
  static GF_HD F splat(float x) { return x - F{}; }
  static GF_HD F to_float(I x) { return __builtin_convertvector(x, F); }
  static GF_HD F bits_to_float(I x) { return (F)x; }
  static GF_HD I float_to_bits(F x) { return (I)x; }
  static GF_HD I greater(F a, F b) { return a > b; }
};
using IntLanes = VectorLane::I;
using WordLanes = VectorLane::U;
using FloatLanes = VectorLane::F;

template <class V, class T>
GF_HD V load_lanes(const T* p) {
  static_assert(sizeof(T) == 4, "lanes are 4 bytes wide");
  V v;
  memcpy(&v, p, sizeof(V));
  return v;
}

template <class V, class T>
GF_HD void store_lanes(T* p, V v) {
  static_assert(sizeof(T) == 4, "lanes are 4 bytes wide");
  memcpy(p, &v, sizeof(V));
}

GF_HD WordLanes lane_numbers() {
  WordLanes v;
  for (int i = 0; i < kLanes; ++i) v[i] = static_cast<uint32_t>(i);
  return v;
}

// Bit i of the result: lane i of a vector of 0 and -1.
GF_HD uint32_t lane_bits(IntLanes mask) {
#if defined(__AVX512DQ__)
  return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps((__m128)mask));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= (static_cast<uint32_t>(mask[i]) & 1u) << i;
  return bits;
#endif
}

// A register as a table of kLanes entries: lane i becomes table[index[i] % kLanes].
#if defined(__AVX512F__)
constexpr int kTableBits = 4;
GF_HD IntLanes look_up(IntLanes table, WordLanes index) {
  return (IntLanes)_mm512_maskz_permutexvar_epi32(0xffff, (__m512i)index, (__m512i)table);
}
#elif defined(__AVX2__)
constexpr int kTableBits = 3;
GF_HD IntLanes look_up(IntLanes table, WordLanes index) {
  return (IntLanes)_mm256_permutevar8x32_epi32((__m256i)table, (__m256i)index);
}
#else
constexpr int kTableBits = 0;  // there is no such instruction
#endif

// w[k] holds word k of blocks b, b + 1, ...; the result holds the words in the order of the units, 4 a block.
GF_HD void in_unit_order(WordLanes (&w)[4]) {
  uint32_t in[4][kLanes], out[4 * kLanes];
  memcpy(in, w, sizeof(in));
  for (int b = 0; b < kLanes; ++b)
    for (int k = 0; k < 4; ++k) out[4 * b + k] = in[k][b];
  memcpy(w, out, sizeof(out));
}

}  // namespace GF_BACKEND
}  // namespace gf
