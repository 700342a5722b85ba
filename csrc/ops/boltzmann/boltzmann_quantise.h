// Checks the couplings of a Boltzmann machine on the CPU and rounds them to fixed point (gibbs.h says how).
#pragma once

#include "common/gibbs.h"
#include "common/gibbs_lanes.h"
#include "common/parallel.h"
#include "ops/boltzmann/boltzmann.h"

namespace gf {
inline namespace GF_BACKEND {

// Whether the square of kLanes rows at x is the transpose of that at y.
inline bool mirrored(const float* x, const float* y, int64_t stride) {
  IntLanes square[kLanes], differ{};
  for (int r = 0; r < kLanes; ++r) square[r] = load_lanes<IntLanes>(y + r * stride);
  transpose(square);
  for (int r = 0; r < kLanes; ++r) differ |= (FloatLanes)square[r] != load_lanes<FloatLanes>(x + r * stride);
  return lane_bits(differ) == 0;
}
inline bool mirrored(const double* x, const double* y, int64_t stride) {
  bool same = true;
  for (int r = 0; r < kLanes; ++r)
    for (int c = 0; c < kLanes; ++c) same &= x[r * stride + c] == y[c * stride + r];
  return same;
}

// A strip is the kLanes rows from `begin`: compares them with the columns of the same numbers, from the diagonal on.
template <class T>
inline int32_t check_strip(const T* J, int64_t d, int64_t begin) {
  bool symmetric = true, diagonal = true;
  const int64_t end = begin + kLanes < d ? begin + kLanes : d;
  int64_t j = begin;
  if (end == begin + kLanes)
    for (; j + kLanes <= d; j += kLanes) symmetric &= mirrored(J + begin * d + j, J + j * d + begin, d);
  for (; j < d; ++j)
    for (int64_t i = begin; i < end; ++i) symmetric &= J[i * d + j] == J[j * d + i];
  for (int64_t i = begin; i < end; ++i) diagonal &= J[i * d + i] == 0;
  return (symmetric ? 0 : kBoltzmannAsymmetric) | (diagonal ? 0 : kBoltzmannDiagonal);
}

template <class T>
inline auto largest_bits(const T* x, int64_t n) {
  decltype(magnitude_bits(T())) m = 0;
  for (int64_t i = 0; i < n; ++i) {
    const auto b = magnitude_bits(x[i]);
    m = b > m ? b : m;
  }
  return m;
}

// Rounds `width` weights to a row of a panel; returns the sum of what they are before the shift.
template <class T>
inline int32_t round_part(const T* GF_RESTRICT from, int64_t width, T inverse, int shift, int32_t* GF_RESTRICT to) {
  IntLanes total{};
  int64_t j = 0;
  if constexpr (sizeof(T) == 4) {
    for (; j + kLanes <= width; j += kLanes) {
      const IntLanes q = round_even(load_lanes<FloatLanes>(from + j) * VectorLane::splat(inverse));
      total += q;
      store_lanes(to + j, q << shift);
    }
  }
  int32_t sum = 0;
  for (; j < width; ++j) {
    const int32_t q = round_even(from[j] * inverse);
    sum += q;
    to[j] = q * (1 << shift);
  }
  for (; j % kLanes != 0; ++j) to[j] = 0;
  for (int k = 0; k < kLanes; ++k) sum += total[k];
  return sum;
}

struct BoltzmannScale {
  int exponent;
  int32_t status;
};

// Fills rows and base of the workspace, unless the status says why it cannot.
template <class T>
inline BoltzmannScale boltzmann_quantise(const BoltzmannGibbs& f, const BoltzmannWorkspace& at) {
  const int64_t d = f.d, strips = (d + kLanes - 1) / kLanes, last = (d - 1) / kLanes * kLanes;
  const T* J = static_cast<const T*>(f.J);
  const T* bias = static_cast<const T*>(f.bias);
  using B = decltype(magnitude_bits(T()));
  const auto as_double = [](B bits) { return magnitude_bits(static_cast<double>(bit_cast<T>(bits))); };

  // The work of the strips shrinks with their number: a task takes one of the first and one of the last.
  B weight = 0;
  int32_t status = 0;
  const int64_t pairs = (strips + 1) / 2;
  B* largest_of = reinterpret_cast<B*>(f.workspace + at.rows);  // one number a task, before the rows come
  parallel_for(pairs, 1, [&](int64_t task, int64_t) {
    B m = 0;
    int32_t found = 0;
    for (int side = 0; side < 2; ++side) {
      const int64_t strip = side ? strips - 1 - task : task;
      if (side && strip == task) break;
      const int64_t begin = strip * kLanes, rows = begin == last ? d - begin : kLanes;
      const B b = largest_bits(J + begin * d, rows * d);
      m = b > m ? b : m;
      found |= check_strip(J, d, begin);
    }
    largest_of[task] = m;
    if (found) __atomic_fetch_or(&status, found, __ATOMIC_RELAXED);
  });
  for (int64_t p = 0; p < pairs; ++p) weight = largest_of[p] > weight ? largest_of[p] : weight;
  const B of_bias = largest_bits(bias, d), largest = of_bias > weight ? of_bias : weight;
  if (as_double(largest) >= kInfinityBits) return {0, kBoltzmannNotFinite};
  if (status) return {0, status};

  const FixedPointScale scale(as_double(largest), d);
  const T unit = scale.template unit<T>();
  int32_t* sums = f.workspace + at.base;
  parallel_for(d, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int32_t sum = fixed_point_bound(bias[i], unit);
      for (int64_t j = 0; j < d; ++j) sum += fixed_point_bound(J[i * d + j], unit);
      sums[i] = sum;
    }
  });
  int32_t largest_sum = 0;
  for (int64_t i = 0; i < d; ++i) largest_sum = sums[i] > largest_sum ? sums[i] : largest_sum;
  const int e = scale.fixed_point_exponent(largest_sum, as_double(weight));

  const T inverse = power_of_two<T>(-e);
  const int shift = f.spins ? 1 : 0;  // turning a spin moves it by 2
  parallel_for(d, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* GF_RESTRICT from = J + i * d;
      int32_t sum = 0;
      for (int64_t j0 = 0; j0 < d; j0 += kBoltzmannPanel) {
        int32_t* GF_RESTRICT to = f.workspace + at.rows + j0 * d + i * kBoltzmannPanel;
        sum += round_part(from + j0, d - j0 < kBoltzmannPanel ? d - j0 : kBoltzmannPanel, inverse, shift, to);
      }
      f.workspace[at.base + i] = round_even(bias[i] * inverse) - (f.spins ? sum : 0);
    }
  });
  for (int64_t i = d; i < at.stride; ++i) f.workspace[at.base + i] = 0;
  return {e, 0};
}

}  // namespace GF_BACKEND
}  // namespace gf
