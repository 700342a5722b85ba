// States 0 and 1, or -1 and 1, as they lie in tensors, and as bits.
#pragma once

#include <cstdint>

#include "common/gibbs.h"
#include "common/states.h"
#if !defined(__CUDACC__) && !defined(GF_SIMT)
#include "common/gibbs_lanes.h"
#endif

namespace gf {
inline namespace GF_BACKEND {

// How a dtype writes the two states and NaN. `ignored` is the bit that tells -0 from 0 where 0 is a state.
template <class E>
struct SpinCode {
  E up, down, nan, ignored;
};

template <class F>
inline void dispatch_spins(DType dtype, bool spin, F&& f) {
  dispatch_state(dtype, [&](auto code) {
    using E = decltype(code.one);
    const E minus = code.sign ? static_cast<E>(code.one | code.sign) : static_cast<E>(-1);
    f(SpinCode<E>{code.one, spin ? minus : E(0), code.nan, spin ? E(0) : code.sign});
  });
}

GF_HD bool is_temperature(float beta) { return beta > 0.0f && magnitude_bits(beta) < 0x7f800000u; }

// Bits 0, 2, 4, ... of x as the lower 16, and back.
GF_HD uint32_t even_bits(uint32_t x) {
#if defined(__BMI2__)
  return _pext_u32(x, 0x55555555u);
#else
  x &= 0x55555555u;
  x = (x | x >> 1) & 0x33333333u;
  x = (x | x >> 2) & 0x0f0f0f0fu;
  x = (x | x >> 4) & 0x00ff00ffu;
  return (x | x >> 8) & 0xffffu;
#endif
}

GF_HD uint32_t spread_bits(uint32_t x) {
#if defined(__BMI2__)
  return _pdep_u32(x, 0x55555555u);
#else
  x &= 0xffffu;
  x = (x | x << 8) & 0x00ff00ffu;
  x = (x | x << 4) & 0x0f0f0f0fu;
  x = (x | x << 2) & 0x33333333u;
  return (x | x << 1) & 0x55555555u;
#endif
}

#if !defined(__CUDACC__) && !defined(GF_SIMT)

// Bits of `count` <= 32 states; `bad` collects what is none.
template <class E>
GF_HD uint32_t pack_states(const E* x, int64_t count, const SpinCode<E>& code, E& bad) {
  uint32_t bits = 0;
  const E seen = static_cast<E>(~code.ignored);
  if constexpr (sizeof(E) == 4) {
    if (count == 32) {
      WordLanes wrong{};
      for (int i = 0; i < 32; i += kLanes) {
        const WordLanes value = load_lanes<WordLanes>(x + i);
        const IntLanes on = value == code.up;
        bits |= lane_bits(on) << (i % 32);
        wrong |= ((value & seen) ^ code.down) & ~(WordLanes)on;
      }
      for (int i = 0; i < kLanes; ++i) bad |= wrong[i];
      return bits;
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const bool on = x[i] == code.up;
    bits |= static_cast<uint32_t>(on) << i;
    bad |= on ? E(0) : static_cast<E>((x[i] & seen) ^ code.down);
  }
  return bits;
}

template <class E>
GF_HD void unpack_states(E* x, int64_t count, uint32_t bits, const SpinCode<E>& code) {
  const E both = static_cast<E>(code.up ^ code.down);
  if constexpr (sizeof(E) == 4) {
    if (count == 32) {
      for (int i = 0; i < 32; i += kLanes) {
        const WordLanes bit = ((WordLanes{} + bits) >> (lane_numbers() + static_cast<uint32_t>(i))) & 1u;
        store_lanes(x + i, (-bit & both) ^ code.down);
      }
      return;
    }
  }
  for (int64_t i = 0; i < count; ++i) x[i] = static_cast<E>((-static_cast<E>((bits >> i) & 1u) & both) ^ code.down);
}

#endif

}  // namespace GF_BACKEND
}  // namespace gf
