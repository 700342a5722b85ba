// Rounds a deep machine's weights to fixed point on the CPU (gibbs.h says how, of the machine as an RBM between its
// even and odd layers) and lays them out in panels, those to the layer below before those to the layer above.
#pragma once

#include "ops/dbm/dbm.h"
#include "ops/rbm/rbm_quantise.h"

namespace gf {
inline namespace GF_BACKEND {

// Fills weights and biases of the workspace; returns e, or INT32_MIN where a number is not finite.
template <class T>
inline int dbm_quantise(const DbmGibbs& f, const DbmWorkspace& at) {
  using B = MagnitudeBits<T>;
  const auto weights = [&](int l) { return static_cast<const T*>(f.weights(l)); };
  const T* biases = static_cast<const T*>(f.biases);

  B weight = 0;
  for (int l = 0; l + 1 < at.layers; ++l) {
    const B of_layer = largest_weight(weights(l), at.units[l], at.units[l + 1]);
    weight = of_layer > weight ? of_layer : weight;
  }
  const B of_biases = largest_magnitude(biases, f.units);
  const uint64_t largest = double_bits<T>(weight > of_biases ? weight : of_biases);
  if (largest >= kInfinityBits) return INT32_MIN;
  const FixedPointScale scale(largest, at.most_weights());
  const T unit = scale.template unit<T>();

  int32_t* sums = f.workspace + at.sums;
  int32_t* row_sums = f.workspace + at.row_sums;
  for (int l = 0; l < at.layers; ++l)
    for (int64_t i = 0; i < at.units[l]; ++i)
      sums[at.first[l] + i] = fixed_point_bound(biases[at.first[l] + i], unit) + static_cast<int32_t>(at.strangers(l));
  for (int l = 0; l + 1 < at.layers; ++l) {
    const int64_t stride = kRbmPanel * at.panels[l];
    bound_sums(weights(l), at.units[l], at.units[l + 1], unit, sums + at.first[l + 1], row_sums, stride);
    for (int64_t p = 0; p < at.panels[l + 1]; ++p)
      for (int64_t i = 0; i < at.units[l]; ++i) sums[at.first[l] + i] += row_sums[p * stride + i];
  }
  int32_t largest_sum = 0;
  for (int64_t i = 0; i < f.units; ++i) largest_sum = sums[i] > largest_sum ? sums[i] : largest_sum;
  const int e = scale.fixed_point_exponent(largest_sum, double_bits<T>(weight));

  const T inverse = power_of_two<T>(-e);
  for (int l = 0; l < at.layers; ++l)
    round_biases(biases + at.first[l], at.units[l], kRbmPanel * at.panels[l], inverse, f.workspace + at.bias[l]);
  for (int l = 0; l + 1 < at.layers; ++l)
    lay_out_weights(weights(l), at.units[l], at.units[l + 1], inverse, f.workspace + at.weights[l + 1],
                    kRbmPanel * at.inputs[l + 1], f.workspace + at.weights[l] + kRbmPanel * at.above(l) * kRbmStrip,
                    kRbmPanel * at.inputs[l]);
  return e;
}

}  // namespace GF_BACKEND
}  // namespace gf
