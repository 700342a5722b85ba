// The free energy of an RBM on the CPU, and the products with sparse states that it and its gradient need.
#include "common/pack.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "ops/rbm/rbm.h"
#include "ops/rbm/rbm_energy_math.h"
#include "ops/rbm/rbm_lanes.h"

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
constexpr int64_t kBlockRows = 32;

// `rest[j]` = init[j] + 0 * (sum of column j of the scaled M): the zeros of S hide no NaN and no infinity.
void sum_zeros(const RbmSparseProduct& f, float* GF_RESTRICT rest, int64_t begin, int64_t end) {
  for (int64_t j = begin; j < end; ++j) rest[j] = f.init ? f.init[j] : 0.0f;
  for (int64_t k = 0; k < f.inner; ++k) {
    const float* GF_RESTRICT m = f.right + k * f.columns;
    const float zero = f.scale ? 0.0f * f.scale[k] : 0.0f;
    for (int64_t j = begin; j < end; ++j) rest[j] += zero * m[j];
  }
}

// `width` columns from `column` of rows [begin, end), in kCount registers. The last one ends with the last column, and
// repeats some of the work of its neighbour; a matrix narrower than a register (kNarrow) is read with care.
template <int kCount, bool kNarrow>
void product_tile(const RbmSparseProduct& f, const Entries& s, const float* rest, int64_t column, int width,
                  int64_t begin, int64_t end) {
  using P = Native<float>;
  const int fresh = width - (kCount - 1) * P::size, last = kNarrow ? 0 : width - P::size;
  const auto get = [&](const float* p, int r) {
    if constexpr (kNarrow) return load_first<P>(p, width);
    return load<P>(p + (r == kCount - 1 ? last : r * P::size));
  };
  for (int64_t row = begin; row < end; ++row) {
    P acc[kCount];
    for (int r = 0; r < kCount; ++r) acc[r] = get(rest + column, r);
    for (int64_t i = s.start[row]; i < s.start[row + 1]; ++i) {
      const P value(s.value[i]);
      const float* m = f.right + static_cast<int64_t>(s.index[i]) * f.columns + column;
#pragma GCC unroll 8
      for (int r = 0; r < kCount; ++r) acc[r] = fma(value, get(m, r), acc[r]);
    }
    float* out = f.out + row * f.columns + column;
    for (int r = 0; r + 1 < kCount; ++r) store(out + r * P::size, acc[r]);
    for (int i = 0; i < fresh; ++i)
      out[(kCount - 1) * P::size + i] = acc[kCount - 1][kNarrow ? i : P::size - fresh + i];
  }
}

template <int kCount = kRegisters>
void dispatch_tile(const RbmSparseProduct& f, const Entries& s, const float* rest, int64_t column, int width,
                   int64_t begin, int64_t end) {
  if (f.columns < Native<float>::size) return product_tile<1, true>(f, s, rest, column, width, begin, end);
  if (width > (kCount - 1) * Native<float>::size)
    return product_tile<kCount, false>(f, s, rest, column, width, begin, end);
  if constexpr (kCount > 1) dispatch_tile<kCount - 1>(f, s, rest, column, width, begin, end);
}

}  // namespace

void rbm_free_energy(const RbmFreeEnergy& f) {
  parallel_for(f.size.n, 16, [&](int64_t begin, int64_t end) {
    f.dtype == DType::f64 ? energy_rows<double>(f, begin, end) : energy_rows<float>(f, begin, end);
  });
}

bool rbm_sparse_product(const RbmSparseProduct& f) {
  // Above this share of non-zeros a dense product is faster (measured).
  constexpr double kDense = 0.35;
  constexpr int64_t kRows = 32;
  if (f.rows == 0 || f.inner == 0 || f.columns == 0) return false;
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
  if (static_cast<double>(total) > kDense * static_cast<double>(f.rows) * static_cast<double>(f.inner)) return false;

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
  Scratch<float> rest(f.columns);
  const int64_t blocks = (f.rows + kBlockRows - 1) / kBlockRows, tiles = (f.columns + kTile - 1) / kTile;
  parallel_for(f.columns, kTile, [&](int64_t begin, int64_t end) { sum_zeros(f, rest.get(), begin, end); });
  // Blocks of rows of one tile follow each other: the tile of M stays in the cache.
  parallel_for(blocks * tiles, 1, [&](int64_t task, int64_t) {
    const int64_t column = task / blocks * kTile, begin = task % blocks * kBlockRows;
    const int64_t end = begin + kBlockRows < f.rows ? begin + kBlockRows : f.rows;
    const int width = static_cast<int>(f.columns - column < kTile ? f.columns - column : kTile);
    dispatch_tile(f, s, rest.get(), column, width, begin, end);
  });
  return true;
}

}  // namespace GF_BACKEND
}  // namespace gf
