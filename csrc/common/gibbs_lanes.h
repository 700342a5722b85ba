// The SIMD lanes of the Gibbs samplers' CPU kernels: one register of int32, and what GCC's vector extensions leave out.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/gibbs.h"
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

// The lanes of a and b in turn: a0 b0 a1 b1 ... The lower half, and the upper.
template <class V>
GF_HD void zip(V a, V b, V& low, V& high) {
#if defined(__GNUC__) && !defined(__clang__)
  IntLanes from;
  for (int i = 0; i < kLanes; ++i) from[i] = i / 2 + i % 2 * kLanes;
  low = __builtin_shuffle(a, b, from);
  high = __builtin_shuffle(a, b, from + kLanes / 2);
#else
  for (int i = 0; i < kLanes; ++i) {
    low[i] = i % 2 ? b[i / 2] : a[i / 2];
    high[i] = i % 2 ? b[kLanes / 2 + i / 2] : a[kLanes / 2 + i / 2];
  }
#endif
}

// w[k] holds word k of blocks b, b + 1, ...; the result holds the words in the order of the units, 4 a block.
GF_HD void in_unit_order(WordLanes (&w)[4]) {
  WordLanes even[2], odd[2];
  zip(w[0], w[2], even[0], even[1]);
  zip(w[1], w[3], odd[0], odd[1]);
  zip(even[0], odd[0], w[0], w[1]);
  zip(even[1], odd[1], w[2], w[3]);
}

// Transposes a square of kLanes rows: after log2(kLanes) perfect shuffles of the rows, rows are columns.
GF_HD void transpose(IntLanes (&rows)[kLanes]) {
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    IntLanes next[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 2; ++i) zip(rows[i], rows[i + kLanes / 2], next[2 * i], next[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

// Half to even, for |x| < 2^31.
GF_HD IntLanes round_even(FloatLanes x) {
#if defined(__AVX512F__)
  return (IntLanes)_mm512_maskz_cvtps_epi32(0xffff, (__m512)x);
#elif defined(__AVX__)
  return (IntLanes)_mm256_cvtps_epi32((__m256)x);
#elif defined(__SSE2__)
  return (IntLanes)_mm_cvtps_epi32((__m128)x);
#else
  IntLanes q;
  for (int i = 0; i < kLanes; ++i) q[i] = round_even(x[i]);
  return q;
#endif
}

}  // namespace GF_BACKEND
}  // namespace gf
