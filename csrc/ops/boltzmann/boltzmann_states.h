// How the two states of a unit are written in a tensor: 0 and 1, or -1 and 1.
#pragma once

#include "common/states.h"

namespace gf {
inline namespace GF_BACKEND {

template <class E>
struct StatePair {
  E low, high, nan;
  E clear;  // what is looked at when a state is compared with `low`: not the sign, where that is 0

  // -1 in every dtype: a float's 1 with a sign, or all bits.
  StatePair(const StateCode<E>& code, bool spins)
      : low(!spins      ? E(0)
            : code.sign ? static_cast<E>(code.one | code.sign)
                        : static_cast<E>(~E(0))),
        high(code.one),
        nan(code.nan),
        clear(spins ? static_cast<E>(~E(0)) : static_cast<E>(~code.sign)) {}

  GF_HD bool is_low(E x) const { return static_cast<E>(x & clear) == low; }
};

// Calls f with the pair of a dtype.
template <class F>
inline void dispatch_pair(DType dtype, bool spins, F&& f) {
  dispatch_state(dtype, [&](auto code) { f(StatePair<decltype(code.one)>(code, spins)); });
}

constexpr float kLargestFloat = 0x1.fffffep127f;

// The inverse of a temperature, or a number below 0 where it is no temperature: not finite, not above 0, or so small
// that its inverse is not finite.
GF_HD float inverse_temperature(float temperature) {
#if defined(__CUDA_ARCH__)
  const float beta = __fdiv_rn(1.0f, temperature);
#else
  const float beta = 1.0f / temperature;
#endif
  return temperature > 0.0f && beta > 0.0f && beta <= kLargestFloat && temperature <= kLargestFloat ? beta : -1.0f;
}

// The inverse temperature of a chain in one sweep: 1 / (temperature of the chain * factor of the sweep).
template <class L>
GF_HD typename L::F sweep_beta(typename L::F chain, float sweep) {
  const typename L::F beta = rounded_mul(chain, L::splat(sweep)), largest = L::splat(kLargestFloat);
  return L::greater(beta, largest) ? largest : beta;
}

}  // namespace GF_BACKEND
}  // namespace gf
