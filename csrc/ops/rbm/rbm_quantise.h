// Rounds an RBM's weights to fixed point on the CPU (gibbs.h says how) and lays them out in panels.
#pragma once

#include "common/gibbs.h"
#include "common/gibbs_lanes.h"
#include "common/parallel.h"
#include "ops/rbm/rbm.h"

namespace gf {
inline namespace GF_BACKEND {

template <class T>
using MagnitudeBits = decltype(magnitude_bits(T()));

template <class T>
inline MagnitudeBits<T> largest_magnitude(const T* x, int64_t n) {
  MagnitudeBits<T> m = 0;
  for (int64_t i = 0; i < n; ++i) {
    const MagnitudeBits<T> b = magnitude_bits(x[i]);
    m = b > m ? b : m;
  }
  return m;
}

// A row of a block in fixed point; columns that do not exist are 0.
template <class T>
inline void round_row(const T* GF_RESTRICT w, int64_t width, T scale, int32_t* GF_RESTRICT out) {
  int64_t j = 0;
  if constexpr (sizeof(T) == 4) {
    for (; j + kLanes <= width; j += kLanes)
      store_lanes(out + j, round_even(load_lanes<FloatLanes>(w + j) * VectorLane::splat(scale)));
  }
  for (; j < width; ++j) out[j] = round_even(w[j] * scale);
  for (; j < kRbmPanel; ++j) out[j] = 0;
}

// Fills weights_h, weights_v, bias_h, bias_v of the workspace; returns e, or INT32_MIN where a number is not finite.
template <class T>
inline int rbm_quantise(const RbmGibbs& f, const RbmWorkspace& at) {
  using B = MagnitudeBits<T>;
  const int64_t nv = f.size.nv, nh = f.size.nh, units_v = kRbmPanel * at.panels_v, units_h = kRbmPanel * at.panels_h;
  const T* W = static_cast<const T*>(f.W);
  const T* a = static_cast<const T*>(f.vbias);
  const T* b = static_cast<const T*>(f.hbias);

  constexpr int64_t kParts = 64;
  B part[kParts] = {};
  const int64_t rows = (nv + kParts - 1) / kParts;
  parallel_for(nv, rows > 0 ? rows : 1, [&](int64_t begin, int64_t end) {
    part[begin / rows] = largest_magnitude(W + begin * nh, (end - begin) * nh);
  });
  B weight = 0;
  for (const B p : part) weight = p > weight ? p : weight;
  B largest = largest_magnitude(a, nv);
  const B largest_b = largest_magnitude(b, nh);
  largest = largest_b > largest ? largest_b : largest;
  largest = weight > largest ? weight : largest;
  const auto as_double = [](B bits) { return magnitude_bits(static_cast<double>(bit_cast<T>(bits))); };
  if (as_double(largest) >= kInfinityBits) return INT32_MIN;
  const FixedPointScale scale(as_double(largest), nv > nh ? nv : nh);
  const T unit = scale.template unit<T>();

  // Sums of the bounds: of each panel's rows, and behind them the largest of its columns.
  int32_t* row_sums = f.workspace + at.bounds;
  int32_t* column_max = row_sums + at.panels_h * units_v;
  parallel_for(at.panels_h, 1, [&](int64_t p, int64_t) {
    const int64_t j0 = p * kRbmPanel, width = nh - j0 < kRbmPanel ? nh - j0 : kRbmPanel;
    int32_t column[kRbmPanel];
    for (int64_t j = 0; j < width; ++j) column[j] = fixed_point_bound(b[j0 + j], unit);
    for (int64_t i = 0; i < nv; ++i) {
      const T* w = W + i * nh + j0;
      int32_t row = 0;
      for (int64_t j = 0; j < width; ++j) {
        const int32_t x = fixed_point_bound(w[j], unit);
        column[j] += x;
        row += x;
      }
      row_sums[p * units_v + i] = row;
    }
    int32_t m = 0;
    for (int64_t j = 0; j < width; ++j) m = column[j] > m ? column[j] : m;
    column_max[p] = m;
  });
  int64_t largest_sum = 0;
  for (int64_t p = 0; p < at.panels_h; ++p) largest_sum = column_max[p] > largest_sum ? column_max[p] : largest_sum;
  for (int64_t i = 0; i < nv; ++i) {
    int64_t row = fixed_point_bound(a[i], unit);
    for (int64_t p = 0; p < at.panels_h; ++p) row += row_sums[p * units_v + i];
    largest_sum = row > largest_sum ? row : largest_sum;
  }
  const int e = scale.fixed_point_exponent(largest_sum, as_double(weight));

  const T inverse = power_of_two<T>(-e);
  int32_t* bias_h = f.workspace + at.bias_h;
  int32_t* bias_v = f.workspace + at.bias_v;
  for (int64_t j = 0; j < units_h; ++j) bias_h[j] = j < nh ? round_even(b[j] * inverse) : 0;
  for (int64_t i = 0; i < units_v; ++i) bias_v[i] = i < nv ? round_even(a[i] * inverse) : 0;
  // A block of 64 x 64 is rounded into a buffer, and copied from there as rows and as columns.
  parallel_for(at.panels_h, 1, [&](int64_t p, int64_t) {
    const int64_t j0 = p * kRbmPanel, width = nh - j0 < kRbmPanel ? nh - j0 : kRbmPanel;
    alignas(64) int32_t block[kRbmPanel][kRbmPanel];
    for (int64_t q = 0; q < at.panels_v; ++q) {
      for (int64_t i = 0; i < kRbmPanel; ++i) {
        const int64_t row = q * kRbmPanel + i;
        if (row < nv)
          round_row(W + row * nh + j0, width, inverse, block[i]);
        else
          memset(block[i], 0, sizeof(block[i]));
      }
      for (int64_t s = 0; s < kRbmPanel; s += kRbmStrip) {
        int32_t* GF_RESTRICT up = f.workspace + at.weights_h + ((j0 + s) * units_v + q * kRbmPanel * kRbmStrip);
        int32_t* GF_RESTRICT down = f.workspace + at.weights_v + ((q * kRbmPanel + s) * units_h + j0 * kRbmStrip);
        for (int64_t i = 0; i < kRbmPanel; ++i) memcpy(up + i * kRbmStrip, block[i] + s, kRbmStrip * sizeof(int32_t));
        for (int64_t i = 0; i < kRbmStrip; i += kLanes) {
          for (int64_t j = 0; j < kRbmPanel; j += kLanes) {
            IntLanes square[kLanes];
            for (int r = 0; r < kLanes; ++r) square[r] = load_lanes<IntLanes>(block[s + i + r] + j);
            transpose(square);
            for (int r = 0; r < kLanes; ++r) store_lanes(down + (j + r) * kRbmStrip + i, square[r]);
          }
        }
      }
    }
  });
  return e;
}

}  // namespace GF_BACKEND
}  // namespace gf
