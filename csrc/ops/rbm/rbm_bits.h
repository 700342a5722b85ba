// States as they lie in tensors, to bits and back: a word is 32 units of one chain.
#pragma once

#include "common/gibbs_lanes.h"
#include "common/states.h"
#include "ops/rbm/rbm.h"

namespace gf {
inline namespace GF_BACKEND {

// Bits of `count` <= 32 states; `bad` collects what is neither 0 nor 1.
template <class E>
GF_HD uint32_t pack_word(const E* x, int64_t count, const StateCode<E>& code, E& bad) {
  uint32_t bits = 0;
  const E clear = static_cast<E>(~code.sign);
  if constexpr (sizeof(E) == 4) {
    if (count == kRbmWord) {
      WordLanes wrong{};
      for (int i = 0; i < kRbmWord; i += kLanes) {
        const WordLanes value = load_lanes<WordLanes>(x + i);
        const IntLanes on = value == code.one;
        bits |= lane_bits(on) << (i % 32);
        wrong |= (value & clear) & ~(WordLanes)on;
      }
      for (int i = 0; i < kLanes; ++i) bad |= wrong[i];
      return bits;
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const bool on = x[i] == code.one;
    bits |= static_cast<uint32_t>(on) << i;
    bad |= on ? E(0) : static_cast<E>(x[i] & clear);
  }
  return bits;
}

template <class E>
GF_HD void unpack_word(E* x, int64_t count, uint32_t bits, E one) {
  if constexpr (sizeof(E) == 4) {
    if (count == kRbmWord) {
      for (int i = 0; i < kRbmWord; i += kLanes) {
        const WordLanes bit = ((WordLanes{} + bits) >> (lane_numbers() + static_cast<uint32_t>(i))) & 1u;
        store_lanes(x + i, -bit & one);
      }
      return;
    }
  }
  for (int64_t i = 0; i < count; ++i) x[i] = static_cast<E>(-static_cast<E>((bits >> i) & 1u) & one);
}

GF_HD int64_t word_width(int64_t units, int64_t word) {
  const int64_t left = units - word * kRbmWord;
  return left < 0 ? 0 : left < kRbmWord ? left : kRbmWord;
}

}  // namespace GF_BACKEND
}  // namespace gf
