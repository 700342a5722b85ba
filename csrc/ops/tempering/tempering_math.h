// The definition of a swap, to the last bit. Levels i and i + 1, with replicas x and y, are exchanged with probability
// min(1, exp(r)) for the log ratio
//   r = (beta_i - beta_{i+1}) (E(x) - E(y)),
// two float64 differences and their product, rounded to float32. This leaves the product of the levels' distributions
// exp(-beta_i E) invariant, since r is the log of the product after over that before. The pairs of one parity, i = step
// (mod 2), share no level and are decided together: pair i by word i % 4 of Philox at (ladder, i / 4, step), as
// u <= exp(-max(0, -r)) with u of gibbs.h's acceptance. A NaN is never accepted.
#pragma once

#include "common/gibbs.h"
#include "common/philox.h"
#include "ops/tempering/tempering.h"

namespace gf {
inline namespace GF_BACKEND {

template <class L>
GF_HD typename L::F swap_probability(typename L::F ratio) {
  const typename L::F zero = L::splat(0.0f);
  const typename L::F p = exp_negative<L>(L::greater(zero, ratio) ? -ratio : zero);
  return ratio == ratio ? p : ratio;
}

template <class L>
GF_HD auto swap_accepted(typename L::F probability, typename L::U word) {
  const typename L::F u =
      rounded_add(rounded_mul(L::to_float((typename L::I)(word >> 1)), L::splat(0x1p-31f)), L::splat(0x1p-32f));
  return u <= probability;
}

// The replica at a level before the swap.
GF_HD int64_t replica_at(const TemperingSwap& f, int64_t ladder, int64_t level) {
  return f.order ? f.order[ladder * f.k + level] : level;
}

GF_HD bool is_replica(const TemperingSwap& f, int64_t replica) { return replica >= 0 && replica < f.k; }

// r of levels `pair` and `pair` + 1; NaN where the order names no replica.
GF_HD float log_ratio(const TemperingSwap& f, int64_t ladder, int64_t pair) {
  const double* energies = f.energies + ladder * f.k;
  if (!f.betas) return static_cast<float>(energies[pair]);
  const int64_t x = replica_at(f, ladder, pair), y = replica_at(f, ladder, pair + 1);
  if (!is_replica(f, x) || !is_replica(f, y)) return bit_cast<float>(uint32_t{0x7fc00000});
  return static_cast<float>((f.betas[pair] - f.betas[pair + 1]) * (energies[x] - energies[y]));
}

}  // namespace GF_BACKEND
}  // namespace gf
