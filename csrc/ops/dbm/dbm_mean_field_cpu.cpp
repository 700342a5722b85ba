// The mean-field fixed point on the CPU. Rows take turns at a tile of the weights, which stays in the cache; what is
// done goes by the means that have changed, listed row by row.
#include <cstdint>
#include <cstring>

#include "common/pack.h"
#include "common/parallel.h"
#include "common/real.h"
#include "common/scratch.h"
#include "ops/dbm/dbm.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int kRegisters = 8;  // packs of fields that are summed at once
constexpr int64_t kRows = 16;  // rows of a task
constexpr int64_t kTile = kMeanFieldTile;

// What has changed in a layer, row by row, `stride` apart: units and by how much.
template <class T>
struct Changes {
  const uint32_t* unit;
  const T* value;
  const int64_t* count;  // of each row
  int64_t stride, units;
};

// Writes a matrix [rows, columns] in tiles of its columns, [tiles, rows, kTile], and of its rows, [tiles, columns,
// kTile].
template <class T>
void lay_out(const T* GF_RESTRICT in, int64_t rows, int64_t columns, T* GF_RESTRICT by_columns,
             T* GF_RESTRICT by_rows) {
  constexpr int64_t kBlock = 16;
  parallel_for(mean_field_tiles(columns), 1, [&](int64_t tile, int64_t) {
    const int64_t j0 = tile * kTile, width = columns - j0 < kTile ? columns - j0 : kTile;
    T* out = by_columns + tile * rows * kTile;
    for (int64_t i = 0; i < rows; ++i, out += kTile) {
      memcpy(out, in + i * columns + j0, static_cast<std::size_t>(width) * sizeof(T));
      for (int64_t j = width; j < kTile; ++j) out[j] = 0;
    }
  });
  parallel_for(mean_field_tiles(rows), 1, [&](int64_t tile, int64_t) {
    const int64_t i0 = tile * kTile, width = rows - i0 < kTile ? rows - i0 : kTile;
    T* out = by_rows + tile * columns * kTile;
    for (int64_t j0 = 0; j0 < columns; j0 += kBlock) {
      const int64_t j1 = j0 + kBlock < columns ? j0 + kBlock : columns;
      for (int64_t i = 0; i < kTile; ++i)
        for (int64_t j = j0; j < j1; ++j) out[j * kTile + i] = i < width ? in[(i0 + i) * columns + j] : T(0);
    }
  });
}

// Sets the means of one layer of a row and lists what has changed; returns the largest change, NaN if any is.
template <class T>
T set_means(const T* GF_RESTRICT field, T* GF_RESTRICT mean, T* GF_RESTRICT used, int64_t units, T threshold,
            uint32_t* GF_RESTRICT unit, T* GF_RESTRICT value, int64_t* count) {
  using P = Native<T>;
  T change = 0, bad = 0;
  int64_t found = 0;
  for (int64_t j = 0; j < units; j += P::size) {
    const int left = static_cast<int>(units - j < P::size ? units - j : P::size);
    const P now = sigmoid(load_first<P>(field + j, left));
    T moved[P::size], rest[P::size];
    store(moved, abs(now - load_first<P>(mean + j, left)));
    store(rest, now - load_first<P>(used + j, left));
    store_first(mean + j, now, left);
    for (int i = 0; i < left; ++i) {
      change = moved[i] > change ? moved[i] : change;
      bad += moved[i] - moved[i];
      const bool takes = !((rest[i] < 0 ? -rest[i] : rest[i]) <= threshold);
      unit[found] = static_cast<uint32_t>(j + i);
      value[found] = rest[i];
      found += takes;
      used[j + i] = takes ? mean[j + i] : used[j + i];
    }
  }
  *count = found;
  return change + bad;
}

// Adds to the fields of a layer of `outputs` units what comes from the changes of another by the weights [tiles, units
// of the other, kTile], in the rows listed.
template <class T>
void add_changes(const Changes<T>& changes, const T* W, int64_t outputs, T* fields, const int64_t* rows, int64_t n) {
  using P = Native<T>;
  constexpr int64_t kWidth = kRegisters * P::size;
  static_assert(kTile % kWidth == 0, "a tile is a whole number of parts");
  const int64_t tiles = mean_field_tiles(outputs), blocks = (n + kRows - 1) / kRows;
  // Blocks of rows of one tile follow each other: the tile of W stays in the cache.
  parallel_for(tiles * blocks, 1, [&](int64_t task, int64_t) {
    const int64_t tile = task / blocks, begin = task % blocks * kRows, end = begin + kRows < n ? begin + kRows : n;
    for (int64_t part = 0; part < kTile && tile * kTile + part < outputs; part += kWidth) {
      const int64_t column = tile * kTile + part;
      const T* GF_RESTRICT weights = W + tile * changes.units * kTile + part;
      for (int64_t r = begin; r < end; ++r) {
        const int64_t row = rows[r], entries = changes.count[row];
        if (entries == 0) continue;
        const uint32_t* GF_RESTRICT unit = changes.unit + row * changes.stride;
        const T* GF_RESTRICT value = changes.value + row * changes.stride;
        P sum[kRegisters];
        for (int k = 0; k < kRegisters; ++k) sum[k] = P(T(0));
        for (int64_t i = 0; i < entries; ++i) {
          const P x(value[i]);
          const T* w = weights + static_cast<int64_t>(unit[i]) * kTile;
#pragma GCC unroll 8
          for (int k = 0; k < kRegisters; ++k) sum[k] = fma(x, load<P>(w + k * P::size), sum[k]);
        }
        T* to = fields + row * changes.stride + column;
        for (int k = 0; k < kRegisters; ++k) {
          const int64_t rest = outputs - column - k * P::size;
          if (rest <= 0) break;
          const int left = static_cast<int>(rest < P::size ? rest : P::size);
          store_first(to + k * P::size, load_first<P>(to + k * P::size, left) + sum[k], left);
        }
      }
    }
  });
}

template <class T>
void settle(const DbmMeanField& f) {
  T* fields = static_cast<T*>(f.fields);
  T* means = static_cast<T*>(f.means);
  const int64_t n = f.n, units = f.units;
  int layers = 0;
  int64_t first[kDbmLayers] = {};
  for (; layers < kDbmLayers - 1 && f.layer_units(layers) > 0; ++layers)
    first[layers + 1] = first[layers] + f.layer_units(layers);
  T* free = static_cast<T*>(f.workspace);
  const auto take = [&](int64_t count) {
    T* at = free;
    free += count;
    return at;
  };
  T *up[kDbmLayers] = {}, *down[kDbmLayers] = {};
  for (int l = 0; l + 1 < layers; ++l) {
    const int64_t below = f.layer_units(l), above = f.layer_units(l + 1);
    up[l] = take(kTile * mean_field_tiles(above) * below);
    down[l] = take(kTile * mean_field_tiles(below) * above);
    lay_out(static_cast<const T*>(f.weights(l)), below, above, up[l], down[l]);
  }
  T* used = take(n * units);
  T* values = take(n * units);
  uint32_t* changed = reinterpret_cast<uint32_t*>(take(n * units));
  memcpy(used, means, static_cast<std::size_t>(n * units) * sizeof(T));

  Scratch<T> largest(n);
  Scratch<int64_t> counts(layers * n), active(n);
  int64_t* rows = active.get();
  for (int64_t r = 0; r < n; ++r) rows[r] = r;
  const T tolerance = static_cast<T>(f.tolerance), threshold = static_cast<T>(kMeanFieldRest * f.tolerance);
  int64_t left = n;
  for (int64_t iteration = 1; left > 0; ++iteration) {
    for (const int side : {0, 1}) {
      parallel_for(left, 4, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          const int64_t row = rows[r];
          T most = side ? largest.get()[row] : T(0);
          for (int l = side; l < layers; l += 2) {
            const int64_t at = row * units + first[l];
            const T change = set_means(fields + at, means + at, used + at, f.layer_units(l), threshold, changed + at,
                                       values + at, counts.get() + l * n + row);
            most = most >= change || most != most ? most : change;
          }
          largest.get()[row] = most;
        }
      });
      if (side == 1) {
        int64_t kept = 0;
        for (int64_t r = 0; r < left; ++r) {
          const int64_t row = rows[r];
          f.n_iterations[row] = iteration;
          if (!(largest.get()[row] <= tolerance) && iteration < f.max_iterations) rows[kept++] = row;
        }
        left = kept;
      }
      for (int l = side; l < layers; l += 2) {
        const Changes<T> changes{changed + first[l], values + first[l], counts.get() + l * n, units, f.layer_units(l)};
        if (l > 0) add_changes(changes, down[l - 1], f.layer_units(l - 1), fields + first[l - 1], rows, left);
        if (l + 1 < layers) add_changes(changes, up[l], f.layer_units(l + 1), fields + first[l + 1], rows, left);
      }
    }
  }
}

}  // namespace

void dbm_mean_field(const DbmMeanField& f) { f.dtype == DType::f64 ? settle<double>(f) : settle<float>(f); }

}  // namespace GF_BACKEND
}  // namespace gf
