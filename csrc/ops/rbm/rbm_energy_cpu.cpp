// The free energy of an RBM on the CPU, and the products with sparse states that it and its gradient need.
#include "common/gibbs_lanes.h"
#include "common/pack.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "ops/rbm/rbm.h"
#include "ops/rbm/rbm_energy_math.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

template <class T>
void energy_rows(const RbmFreeEnergy& f, int64_t begin, int64_t end) {
  using P = Native<T>;
  const int64_t nv = f.size.nv, nh = f.size.nh;
  const T* a = static_cast<const T*>(f.vbias);
  for (int64_t n = begin; n < end; ++n) {
    const T* v = static_cast<const T*>(f.v) + n * nv;
    T* x = static_cast<T*>(f.fields) + n * nh;
    P total(0);
    for (int64_t i = 0; i < nv; i += P::size) {
      const int left = static_cast<int>(nv - i < P::size ? nv - i : P::size);
      total = fma(load_first<P>(a + i, left), load_first<P>(v + i, left), total);
    }
    P units(0);
    for (int64_t j = 0; j < nh; j += P::size) {
      const int left = static_cast<int>(nh - j < P::size ? nh - j : P::size);
      const RbmUnit<P> u = rbm_unit(load_first<P>(x + j, left));
      store_first(x + j, u.p, left);
      if (left == P::size) {
        units += u.softplus;
      } else {
        for (int i = 0; i < left; ++i) units.set(i, units[i] + u.softplus[i]);
      }
    }
    static_cast<T*>(f.energy)[n] = -(sum(total) + sum(units));
  }
}

// The entries of S that are not zero: row r has entries [start[r], start[r + 1]).
struct Entries {
  const int64_t* start;
  const uint32_t* index;  // of the row of M
  const float* value;
};

// Visits the entries of rows [begin, end), those of a row in order: visit(row, index, value).
template <class F>
GF_HD void for_entries(const RbmSparseProduct& f, int64_t begin, int64_t end, F&& visit) {
  const auto scan = [](const float* x, int64_t n, auto&& found) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
      for (uint32_t bits = lane_bits(load_lanes<FloatLanes>(x + i) != FloatLanes{}); bits; bits &= bits - 1)
        found(i + __builtin_ctz(bits));
    for (; i < n; ++i)
      if (x[i] != 0.0f) found(i);
  };
  if (f.transposed) {
    for (int64_t k = 0; k < f.inner; ++k) {
      const float* x = f.left + k * f.rows + begin;
      scan(x, end - begin, [&](int64_t i) { visit(begin + i, k, x[i]); });
    }
  } else {
    for (int64_t r = begin; r < end; ++r) {
      const float* x = f.left + r * f.inner;
      scan(x, f.inner, [&](int64_t k) { visit(r, k, x[k]); });
    }
  }
}

constexpr int kRegisters = 8;  // columns that are summed at once, in registers
constexpr int64_t kTile = kRegisters * Native<float>::size;

// Copies `width` columns of M from `column` to aligned rows of kTile numbers, and sets rest[j] to init[j] + 0 * (sum of
// column j of the scaled M): the zeros of S hide no NaN and no infinity.
void pack_tile(const RbmSparseProduct& f, int64_t column, int64_t width, float* GF_RESTRICT packed,
               float* GF_RESTRICT rest) {
  for (int64_t j = 0; j < kTile; ++j) rest[j] = f.init && j < width ? f.init[column + j] : 0.0f;
  for (int64_t k = 0; k < f.inner; ++k) {
    const float* GF_RESTRICT m = f.right + k * f.columns + column;
    float* GF_RESTRICT to = packed + k * kTile;
    const float zero = f.scale ? 0.0f * f.scale[k] : 0.0f;
    for (int64_t j = 0; j < width; ++j) {
      to[j] = m[j];
      rest[j] += zero * m[j];
    }
    for (int64_t j = width; j < kTile; ++j) to[j] = 0.0f;
  }
}

void product_tile(const RbmSparseProduct& f, const Entries& s, const float* packed, const float* rest, int64_t column,
                  int64_t width, int64_t begin, int64_t end) {
  using P = Native<float>;
  for (int64_t row = begin; row < end; ++row) {
    P acc[kRegisters];
    for (int r = 0; r < kRegisters; ++r) acc[r] = load<P>(rest + r * P::size);
    for (int64_t i = s.start[row]; i < s.start[row + 1]; ++i) {
      const P value(s.value[i]);
      const float* m = packed + static_cast<int64_t>(s.index[i]) * kTile;
#pragma GCC unroll 8
      for (int r = 0; r < kRegisters; ++r) acc[r] = fma(value, load<P>(m + r * P::size), acc[r]);
    }
    float* out = f.out + row * f.columns + column;
    for (int r = 0; r < kRegisters; ++r) {
      const int left = static_cast<int>(width - r * P::size);
      if (left > 0) store_first(out + r * P::size, acc[r], left);
    }
  }
}

// Whether the product is faster by entries than dense, from a sample of S. Nanoseconds an element of S, measured with
// AVX-512 on one core: a dense product takes 0.6 + 0.023 for each column; finding the entries takes 2, and an entry
// 0.042 for each column, or 0.052 and 2.5 where S is transposed and a row's entries lie apart.
bool is_sparse(const RbmSparseProduct& f) {
  constexpr int64_t kSample = 512;
  const int64_t size = f.rows * f.inner, step = size / kSample | 1;  // odd: not in step with the rows
  int64_t count = 0, seen = 0;
  for (int64_t i = 0; i < size; i += step, ++seen) count += f.left[i] != 0.0f;
  const double columns = static_cast<double>(f.columns);
  const double entry = f.transposed ? 2.5 + 0.052 * columns : 0.042 * columns;
  return 2 + entry * static_cast<double>(count) / static_cast<double>(seen) < 0.6 + 0.023 * columns;
}

}  // namespace

void rbm_free_energy(const RbmFreeEnergy& f) {
  parallel_for(f.size.n, 16, [&](int64_t begin, int64_t end) {
    f.dtype == DType::f64 ? energy_rows<double>(f, begin, end) : energy_rows<float>(f, begin, end);
  });
}

bool rbm_sparse_product(const RbmSparseProduct& f) {
  constexpr int64_t kRows = 32;
  if (f.rows == 0 || f.inner == 0 || f.columns == 0 || !is_sparse(f)) return false;
  Scratch<int64_t> starts(f.rows + 1);
  int64_t* start = starts.get();
  parallel_for(f.rows, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) start[r] = 0;
    for_entries(f, begin, end, [&](int64_t r, int64_t, float) { ++start[r]; });
  });
  int64_t total = 0;
  for (int64_t r = 0; r < f.rows; ++r) {
    const int64_t count = start[r];
    start[r] = total;
    total += count;
  }
  start[f.rows] = total;

  Scratch<uint32_t> indices(total);
  Scratch<float> values(total);
  Scratch<int64_t> next(f.rows);
  parallel_for(f.rows, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) next.get()[r] = start[r];
    for_entries(f, begin, end, [&](int64_t r, int64_t k, float x) {
      const int64_t i = next.get()[r]++;
      indices.get()[i] = static_cast<uint32_t>(k);
      values.get()[i] = f.scale ? -f.scale[k] * x : x;
    });
  });

  const Entries s{start, indices.get(), values.get()};
  const int64_t blocks = (f.rows + kRows - 1) / kRows, tiles = (f.columns + kTile - 1) / kTile;
  Scratch<float> rest(tiles * kTile), packed(tiles * kTile * f.inner);
  const auto width = [&](int64_t tile) { return f.columns - tile * kTile < kTile ? f.columns - tile * kTile : kTile; };
  parallel_for(tiles, 1, [&](int64_t tile, int64_t) {
    pack_tile(f, tile * kTile, width(tile), packed.get() + tile * kTile * f.inner, rest.get() + tile * kTile);
  });
  // Blocks of rows of one tile follow each other: the tile of M stays in the cache.
  parallel_for(blocks * tiles, 1, [&](int64_t task, int64_t) {
    const int64_t tile = task / blocks, begin = task % blocks * kRows;
    const int64_t end = begin + kRows < f.rows ? begin + kRows : f.rows;
    product_tile(f, s, packed.get() + tile * kTile * f.inner, rest.get() + tile * kTile, tile * kTile, width(tile),
                 begin, end);
  });
  return true;
}

}  // namespace GF_BACKEND
}  // namespace gf
