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

// The magnitude bits of the largest of a matrix, on all threads.
template <class T>
inline MagnitudeBits<T> largest_weight(const T* W, int64_t rows, int64_t columns) {
  using B = MagnitudeBits<T>;
  constexpr int64_t kParts = 64;
  B part[kParts] = {};
  const int64_t block = (rows + kParts - 1) / kParts;
  parallel_for(rows, block > 0 ? block : 1, [&](int64_t begin, int64_t end) {
    part[begin / block] = largest_magnitude(W + begin * columns, (end - begin) * columns);
  });
  B largest = 0;
  for (const B p : part) largest = p > largest ? p : largest;
  return largest;
}

// Magnitude bits as those of a double.
template <class T>
inline uint64_t double_bits(MagnitudeBits<T> bits) {
  return magnitude_bits(static_cast<double>(bit_cast<T>(bits)));
}

// Adds the bounds of a matrix to the sums of its columns; row_sums[p, row] (of `stride` numbers a panel) are the sums
// of a row over the columns of panel p.
template <class T>
inline void bound_sums(const T* W, int64_t rows, int64_t columns, T unit, int32_t* GF_RESTRICT column_sums,
                       int32_t* GF_RESTRICT row_sums, int64_t stride) {
  parallel_for((columns + kRbmPanel - 1) / kRbmPanel, 1, [&](int64_t p, int64_t) {
    const int64_t j0 = p * kRbmPanel, width = columns - j0 < kRbmPanel ? columns - j0 : kRbmPanel;
    int32_t column[kRbmPanel];
    for (int64_t j = 0; j < width; ++j) column[j] = column_sums[j0 + j];
    for (int64_t i = 0; i < rows; ++i) {
      const T* w = W + i * columns + j0;
      int32_t row = 0;
      for (int64_t j = 0; j < width; ++j) {
        const int32_t x = fixed_point_bound(w[j], unit);
        column[j] += x;
        row += x;
      }
      row_sums[p * stride + i] = row;
    }
    for (int64_t j = 0; j < width; ++j) column_sums[j0 + j] = column[j];
  });
}

// Rounds a matrix [rows, columns] and writes it twice in strips of 16 output units: `up`, where its columns are the
// output, has `up_units` input units a strip, and `down`, where its rows are, `down_units`. A block of 64 x 64 is
// rounded into a buffer, and copied from there as rows and as columns.
template <class T>
inline void lay_out_weights(const T* W, int64_t rows, int64_t columns, T inverse, int32_t* up_weights, int64_t up_units,
                            int32_t* down_weights, int64_t down_units) {
  const int64_t panels_v = (rows + kRbmPanel - 1) / kRbmPanel;
  parallel_for((columns + kRbmPanel - 1) / kRbmPanel, 1, [&](int64_t p, int64_t) {
    const int64_t j0 = p * kRbmPanel, width = columns - j0 < kRbmPanel ? columns - j0 : kRbmPanel;
    alignas(64) int32_t block[kRbmPanel][kRbmPanel];
    for (int64_t q = 0; q < panels_v; ++q) {
      for (int64_t i = 0; i < kRbmPanel; ++i) {
        const int64_t row = q * kRbmPanel + i;
        if (row < rows)
          round_row(W + row * columns + j0, width, inverse, block[i]);
        else
          memset(block[i], 0, sizeof(block[i]));
      }
      for (int64_t s = 0; s < kRbmPanel; s += kRbmStrip) {
        int32_t* GF_RESTRICT up = up_weights + ((j0 + s) * up_units + q * kRbmPanel * kRbmStrip);
        int32_t* GF_RESTRICT down = down_weights + ((q * kRbmPanel + s) * down_units + j0 * kRbmStrip);
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
}

// Rounds biases; those of units that do not exist are 0.
template <class T>
inline void round_biases(const T* b, int64_t n, int64_t units, T inverse, int32_t* out) {
  for (int64_t j = 0; j < units; ++j) out[j] = j < n ? round_even(b[j] * inverse) : 0;
}

// Fills weights_h, weights_v, bias_h, bias_v of the workspace; returns e, or INT32_MIN where a number is not finite.
template <class T>
inline int rbm_quantise(const RbmGibbs& f, const RbmWorkspace& at) {
  using B = MagnitudeBits<T>;
  const int64_t nv = f.size.nv, nh = f.size.nh, units_v = kRbmPanel * at.panels_v, units_h = kRbmPanel * at.panels_h;
  const T* W = static_cast<const T*>(f.W);
  const T* a = static_cast<const T*>(f.vbias);
  const T* b = static_cast<const T*>(f.hbias);

  const B weight = largest_weight(W, nv, nh), largest_a = largest_magnitude(a, nv),
          largest_b = largest_magnitude(b, nh);
  B largest = largest_a > largest_b ? largest_a : largest_b;
  largest = weight > largest ? weight : largest;
  if (double_bits<T>(largest) >= kInfinityBits) return INT32_MIN;
  const FixedPointScale scale(double_bits<T>(largest), nv > nh ? nv : nh);
  const T unit = scale.template unit<T>();

  int32_t* row_sums = f.workspace + at.bounds;
  int32_t* column_sums = row_sums + at.panels_h * units_v;
  for (int64_t j = 0; j < nh; ++j) column_sums[j] = fixed_point_bound(b[j], unit);
  bound_sums(W, nv, nh, unit, column_sums, row_sums, units_v);
  int64_t largest_sum = 0;
  for (int64_t j = 0; j < nh; ++j) largest_sum = column_sums[j] > largest_sum ? column_sums[j] : largest_sum;
  for (int64_t i = 0; i < nv; ++i) {
    int64_t row = fixed_point_bound(a[i], unit);
    for (int64_t p = 0; p < at.panels_h; ++p) row += row_sums[p * units_v + i];
    largest_sum = row > largest_sum ? row : largest_sum;
  }
  const int e = scale.fixed_point_exponent(largest_sum, double_bits<T>(weight));

  const T inverse = power_of_two<T>(-e);
  round_biases(b, nh, units_h, inverse, f.workspace + at.bias_h);
  round_biases(a, nv, units_v, inverse, f.workspace + at.bias_v);
  lay_out_weights(W, nv, nh, inverse, f.workspace + at.weights_h, units_v, f.workspace + at.weights_v, units_h);
  return e;
}

}  // namespace GF_BACKEND
}  // namespace gf
