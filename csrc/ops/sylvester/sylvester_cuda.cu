// Sylvester flow on CUDA. A block takes a tile of rows through all layers; their numbers lie in shared memory as
// columns, a lane has the same few rows in each, and the warps share out the columns of each product. What rows meet,
// U, W and T of sylvester_math.h, a first kernel makes of the arguments; weights are the same for all lanes of a warp.
//
// Gradients of the parameters: each block sums a chunk of rows (chunks.h) into its part of the workspace, a second
// kernel adds the parts in order, and a third makes the gradients of the arguments of them.
#include "common/launch.cuh"
#include "common/log_product.h"
#include "common/reduce.cuh"
#include "common/rows.cuh"
#include "ops/sylvester/sylvester_math.h"
#include "ops/sylvester/sylvester_sizes.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

// What the kernels find in the workspace.
template <class T>
struct Memory {
  T* kept;      // [chunks][k][d + 2 m][column]
  T* products;  // u [k, d, m], w [k, d, m], square [k, m, m], t [k, m]
  T* totals;    // u [k, d, m], w [k, d, m], square [k, m, m], b [k, m], c [k, m]
  T* parts;     // the same for each chunk
};

template <class T>
struct Layer {
  T *u, *w, *square, *t;

  __device__ __forceinline__ Layer(const Sylvester& f, T* from, int64_t k) {
    const int64_t wide = f.d * f.m, square_size = f.m * f.m;
    u = from + k * wide;
    w = from + (f.k + k) * wide;
    square = from + 2 * f.k * wide + k * square_size;
    t = from + f.k * (2 * wide + square_size) + k * f.m;
  }
  // Of sums, where t is the gradient of b.
  __device__ __forceinline__ T* c(const Sylvester& f) const { return t + f.k * f.m; }
};

template <class T>
__global__ void __launch_bounds__(kRowBlock) sylvester_prepare_kernel(Sylvester f, T* products) {
  const int64_t d = f.d, m = f.m, wide = d * m, square = m * m;
  const auto q = [&](int64_t k, int64_t row, int64_t j) {
    return load_number<T>(f.q, f.dtype, k * wide + row * m + j);
  };
  const auto r1 = [&](int64_t k, int64_t i, int64_t j) {
    return load_number<T>(f.r1, f.dtype, k * square + i * m + j);
  };
  const auto r2 = [&](int64_t k, int64_t i, int64_t j) {
    return load_number<T>(f.r2, f.dtype, k * square + i * m + j);
  };
  for (int64_t e = grid_thread(); e < f.k * (2 * wide + square); e += grid_threads()) {
    T sum = T(0);
    if (e < f.k * wide) {
      const int64_t k = e / wide, row = e % wide / m, i = e % m;
      for (int64_t j = 0; j <= i; ++j) sum = fma(q(k, row, j), r1(k, j, i), sum);
      if (f.inverse) sum = -sum;
    } else if (e < 2 * f.k * wide) {
      const int64_t k = e / wide - f.k, row = e % wide / m, i = e % m;
      for (int64_t j = i; j < m; ++j) sum = fma(q(k, row, j), r2(k, i, j), sum);
    } else {
      const int64_t at = e - 2 * f.k * wide, k = at / square, i = at % square / m, j = at % m;
      for (int64_t l = i; l <= j; ++l) sum = fma(r2(k, i, l), r1(k, l, j), sum);
      if (i == j) Layer<T>(f, products, k).t[i] = sylvester_diagonal(f.inverse, sum, storage_epsilon<T>(f.dtype));
    }
    products[e] = sum;
  }
}

// Columns of a tile of rows, of which each lane has kPer.
template <class T, int kPer>
struct Tile {
  static constexpr int kRows = kWarpSize * kPer, kColumn = SylvesterTile::numbers(kPer);
  using P = Packet<T, kPer>;

  const Sylvester& f;
  int64_t first;  // row
  int count;      // of rows that exist

  __device__ __forceinline__ bool exists(int e) const { return lane_index() * kPer + e < count; }
  static __device__ __forceinline__ P& at(T* columns, int64_t i) {
    return *reinterpret_cast<P*>(columns + i * kColumn + lane_index() * kPer);
  }
  static __device__ __forceinline__ const P& at(const T* columns, int64_t i) {
    return *reinterpret_cast<const P*>(columns + i * kColumn + lane_index() * kPer);
  }
  static __device__ __forceinline__ P filled(T x) {
    P p;
    GF_UNROLL
    for (int e = 0; e < kPer; ++e) p.v[e] = x;
    return p;
  }
  // Rows [n, d] as columns, zeros where there is no row; and back.
  __device__ __forceinline__ void load(const void* rows, T* columns) const {
    const int d = static_cast<int>(f.d);
    for (int i = block_thread(); i < kRows * d; i += kRowBlock)
      columns[i % d * kColumn + i / d] = i / d < count ? load_number<T>(rows, f.dtype, first * d + i) : T(0);
    __syncthreads();
  }
  __device__ __forceinline__ void store(const T* columns, void* rows) const {
    const int d = static_cast<int>(f.d);
    __syncthreads();
    for (int i = block_thread(); i < count * d; i += kRowBlock)
      store_number<T>(rows, f.dtype, first * d + i, columns[i % d * kColumn + i / d]);
    __syncthreads();
  }
  // done(i, start(i) + sum_j a[i row + j col] in[j]) for m numbers i, each by one warp, and n numbers j.
  template <class Start, class Done>
  __device__ __forceinline__ void product(const T* a, int64_t row, int64_t col, int64_t m, int64_t n, const T* in,
                                          Start&& start, Done&& done) const {
    constexpr int kOut = 4;
    for (int64_t i = warp_index() * kOut; i < m; i += kRowWarps * kOut) {
      P sum[kOut];
      const T* weights[kOut];
      GF_UNROLL
      for (int r = 0; r < kOut; ++r) {
        const int64_t out = i + r < m ? i + r : m - 1;
        sum[r] = start(out);
        weights[r] = a + out * row;
      }
      GF_ROLLED
      for (int64_t j = 0; j < n; ++j) {
        const P x = at(in, j);
        GF_UNROLL
        for (int r = 0; r < kOut; ++r) {
          const T weight = weights[r][j * col];
          GF_UNROLL
          for (int e = 0; e < kPer; ++e) sum[r].v[e] = fma(weight, x.v[e], sum[r].v[e]);
        }
      }
      GF_UNROLL
      for (int r = 0; r < kOut; ++r)
        if (i + r < m) done(i + r, sum[r]);
    }
  }
  // to[i n + j] += sum over rows of x[i] y[j]; a lane for each i.
  __device__ __forceinline__ void outer(const T* x, int64_t m, const T* y, int64_t n, T* to) const {
    constexpr int kOut = 4;
    const int64_t across = (n + kOut - 1) / kOut, tasks = (m + kWarpSize - 1) / kWarpSize * across;
    for (int64_t task = warp_index(); task < tasks; task += kRowWarps) {
      const int64_t i = task / across * kWarpSize + lane_index(), j = task % across * kOut;
      const T* xs = x + (i < m ? i : m - 1) * kColumn;
      const T* ys[kOut];
      T sum[kOut];
      GF_UNROLL
      for (int r = 0; r < kOut; ++r) ys[r] = y + (j + r < n ? j + r : n - 1) * kColumn, sum[r] = T(0);
      GF_ROLLED
      for (int row = 0; row < kRows; row += kPer) {
        const P a = *reinterpret_cast<const P*>(xs + row);
        GF_UNROLL
        for (int r = 0; r < kOut; ++r) {
          const P b = *reinterpret_cast<const P*>(ys[r] + row);
          GF_UNROLL
          for (int e = 0; e < kPer; ++e) sum[r] = fma(a.v[e], b.v[e], sum[r]);
        }
      }
      GF_UNROLL
      for (int r = 0; r < kOut; ++r)
        if (i < m && j + r < n) to[i * n + j + r] += sum[r];
    }
  }
  // From z the units h of layer k; unit(i, e, layer) for each of this thread's rows e, by one warp for each i.
  template <class F>
  __device__ __forceinline__ void units(int64_t k, const Layer<T>& layer, const T* z, T* h, F&& unit) const {
    const int64_t m = f.m;
    const auto finish = [&](int64_t i, P y) {
      const T t = layer.t[i];
      GF_UNROLL
      for (int e = 0; e < kPer; ++e) {
        const PlanarLayer<T> found = planar_layer(sylvester_unit(f.inverse, y.v[e], t), t);
        y.v[e] = found.h;
        unit(i, e, found);
      }
      at(h, i) = y;
    };
    product(
        layer.w, 1, m, m, f.d, z, [&](int64_t i) { return filled(load_number<T>(f.b, f.dtype, k * m + i)); },
        [&](int64_t i, const P& y) {
          if (f.inverse) return void(at(h, i) = y);
          finish(i, y);
        });
    __syncthreads();
    if (!f.inverse) return;
    if (warp_index() == 0) {  // one unit after the other
      GF_ROLLED
      for (int64_t i = m - 1; i >= 0; --i) {
        P y = at(h, i);
        GF_ROLLED
        for (int64_t j = i + 1; j < m; ++j) {
          const T weight = -layer.square[i * m + j];
          const P other = at(h, j);
          GF_UNROLL
          for (int e = 0; e < kPer; ++e) y.v[e] = fma(weight, other.v[e], y.v[e]);
        }
        finish(i, y);
      }
    }
    __syncthreads();
  }
  __device__ __forceinline__ void move(const Layer<T>& layer, const T* h, T* z) const {
    product(
        layer.u, f.m, 1, f.d, f.m, h, [&](int64_t i) { return at(z, i); },
        [&](int64_t i, const P& sum) { at(z, i) = sum; });
    __syncthreads();
  }
};

// The layer that a row comes to as the i-th.
__device__ __forceinline__ int64_t layer_index(const Sylvester& f, int64_t i) { return f.inverse ? f.k - 1 - i : i; }

template <class T, int kPer>
__global__ void __launch_bounds__(kRowBlock) sylvester_forward_kernel(Sylvester f, T* products) {
  using Rows = Tile<T, kPer>;
  T* z = dynamic_shared<T>();
  T *h = z + f.d * Rows::kColumn, *logs = h + f.m * Rows::kColumn;
  for (int64_t first = int64_t{blockIdx.x} * Rows::kRows; first < f.n; first += int64_t{gridDim.x} * Rows::kRows) {
    const Rows rows{f, first, static_cast<int>(f.n - first < Rows::kRows ? f.n - first : Rows::kRows)};
    rows.load(f.input, z);
    LogProduct<T> product[kPer];
    GF_ROLLED
    for (int64_t i = 0; i < f.k; ++i) {
      const int64_t k = layer_index(f, i);
      const Layer<T> layer(f, products, k);
      rows.units(k, layer, z, h, [&](int64_t, int e, const PlanarLayer<T>& unit) { product[e].multiply(unit.q); });
      rows.move(layer, h, z);
    }
    GF_UNROLL
    for (int e = 0; e < kPer; ++e) Rows::at(logs, warp_index()).v[e] = product[e].log_abs();
    __syncthreads();
    for (int row = block_thread(); row < rows.count; row += kRowBlock) {
      T log_det = logs[row];
      for (int warp = 1; warp < kRowWarps; ++warp) log_det += logs[warp * Rows::kColumn + row];
      static_cast<T*>(f.log_det)[first + row] = f.inverse ? -log_det : log_det;
    }
    rows.store(z, f.output);
  }
}

template <class T, int kPer>
__global__ void __launch_bounds__(kRowBlock) sylvester_backward_kernel(Sylvester f, Memory<T> memory) {
  using Rows = Tile<T, kPer>;
  using P = typename Rows::P;
  constexpr int64_t kColumn = Rows::kColumn;
  const int64_t d = f.d, m = f.m, chunk_index = blockIdx.x;
  T* g = dynamic_shared<T>();  // and, while the layers run again, z
  T *h = g + d * kColumn, *e_columns = h + m * kColumn;
  T* kept = memory.kept + chunk_index * f.k * (d + 2 * m) * kColumn;
  T* part = memory.parts + chunk_index * sylvester_sums(f);
  for (int64_t i = block_thread(); i < sylvester_sums(f); i += kRowBlock) part[i] = T(0);
  __syncthreads();
  const Chunk chunk = chunk_of(f.n, chunk_index);
  for (int64_t first = chunk.begin; first < chunk.end; first += Rows::kRows) {
    const Rows rows{f, first, static_cast<int>(chunk.end - first < Rows::kRows ? chunk.end - first : Rows::kRows)};
    rows.load(f.input, g);
    GF_ROLLED
    for (int64_t i = 0; i < f.k; ++i) {
      T *kept_z = kept + i * (d + 2 * m) * kColumn, *kept_h = kept_z + d * kColumn, *kept_s = kept_h + m * kColumn;
      const int64_t k = layer_index(f, i);
      const Layer<T> layer(f, memory.products, k);
      for (int64_t c = warp_index(); c < d; c += kRowWarps) Rows::at(kept_z, c) = Rows::at(g, c);
      // Rows that do not exist have q = 1 and add nothing.
      rows.units(k, layer, g, h, [&](int64_t c, int e, const PlanarLayer<T>& unit) {
        Rows::at(kept_h, c).v[e] = rows.exists(e) ? unit.h : T(0);
        Rows::at(kept_s, c).v[e] = rows.exists(e) ? unit.s : T(0);
      });
      rows.move(layer, h, g);
    }
    rows.load(f.grad_output, g);
    P l;
    GF_UNROLL
    for (int e = 0; e < kPer; ++e)
      l.v[e] = rows.exists(e) ? static_cast<const T*>(f.grad_log_det)[first + lane_index() * kPer + e] : T(0);
    GF_ROLLED
    for (int64_t i = f.k - 1; i >= 0; --i) {
      const T *kept_z = kept + i * (d + 2 * m) * kColumn, *kept_h = kept_z + d * kColumn,
              *kept_s = kept_h + m * kColumn;
      const int64_t k = layer_index(f, i);
      const Layer<T> layer(f, memory.products, k), sums(f, part, k);
      const auto finish = [&](int64_t c, P ug) {
        const P tanh_c = Rows::at(kept_h, c), s = Rows::at(kept_s, c);
        const T t = layer.t[c];
        T sum_e = T(0), sum_c = T(0);
        P others = Rows::filled(T(0));
        if (f.inverse) {
          GF_ROLLED
          for (int64_t j = 0; j < c; ++j) {
            const T weight = layer.square[j * m + c];
            const P other = Rows::at(e_columns, j);
            GF_UNROLL
            for (int e = 0; e < kPer; ++e) others.v[e] = fma(weight, other.v[e], others.v[e]);
          }
        }
        GF_UNROLL
        for (int e = 0; e < kPer; ++e) {
          const PlanarAdjoint<T> adjoint = sylvester_adjoint(f.inverse, tanh_c.v[e], s.v[e], t, ug.v[e], l.v[e]);
          ug.v[e] = f.inverse ? sylvester_substituted(adjoint.t, s.v[e], t, others.v[e]) : adjoint.t;
          sum_e += ug.v[e];
          sum_c += adjoint.c;
        }
        Rows::at(h, c) = tanh_c;
        Rows::at(e_columns, c) = ug;
        sum_e = warp_sum(sum_e);
        sum_c = warp_sum(sum_c);
        if (lane_index() == 0) sums.t[c] += sum_e, sums.c(f)[c] += sum_c;
      };
      rows.product(
          layer.u, 1, m, m, d, g, [&](int64_t) { return Rows::filled(T(0)); },
          [&](int64_t c, const P& ug) {
            if (f.inverse) return void(Rows::at(e_columns, c) = ug);
            finish(c, ug);
          });
      __syncthreads();
      if (f.inverse) {
        if (warp_index() == 0) {
          GF_ROLLED
          for (int64_t c = 0; c < m; ++c) finish(c, Rows::at(e_columns, c));
        }
        __syncthreads();
      }
      rows.outer(g, d, h, m, sums.u);
      rows.outer(kept_z, d, e_columns, m, sums.w);
      if (f.inverse) rows.outer(e_columns, m, h, m, sums.square);
      __syncthreads();
      rows.product(
          layer.w, m, 1, d, m, e_columns, [&](int64_t c) { return Rows::at(g, c); },
          [&](int64_t c, const P& sum) { Rows::at(g, c) = sum; });
      __syncthreads();
    }
    rows.store(g, f.grad_input);
  }
}

template <class T>
__global__ void __launch_bounds__(kRowBlock) sylvester_sums_kernel(Sylvester f, Memory<T> memory, int64_t chunks) {
  sum_chunks<1, kRowWarps>(
      memory.parts, chunks, sylvester_sums(f), sylvester_sums(f), [](int64_t i, int) { return i; },
      [&](int64_t i, const T(&sums)[1]) { memory.totals[i] = sums[0]; });
}

// A thread for each number of a gradient.
template <class T>
__global__ void __launch_bounds__(kRowBlock) sylvester_gradients_kernel(Sylvester f, T* totals) {
  const int64_t d = f.d, m = f.m, wide = d * m, square = m * m;
  const T sign = f.inverse ? T(-1) : T(1);
  const auto q = [&](int64_t k, int64_t row, int64_t j) {
    return load_number<T>(f.q, f.dtype, k * wide + row * m + j);
  };
  const auto r1 = [&](int64_t k, int64_t i, int64_t j) {
    return load_number<T>(f.r1, f.dtype, k * square + i * m + j);
  };
  const auto r2 = [&](int64_t k, int64_t i, int64_t j) {
    return load_number<T>(f.r2, f.dtype, k * square + i * m + j);
  };
  for (int64_t e = grid_thread(); e < f.k * (wide + 2 * square + m); e += grid_threads()) {
    T sum = T(0);
    if (e < f.k * wide) {
      const int64_t k = e / wide, row = e % wide / m, j = e % m;
      const Layer<T> of(f, totals, k);
      for (int64_t i = j; i < m; ++i) sum = fma(sign * of.u[row * m + i], r1(k, j, i), sum);
      for (int64_t i = 0; i <= j; ++i) sum = fma(of.w[row * m + i], r2(k, i, j), sum);
      store_number<T>(f.grad_q, f.dtype, e, sum);
      continue;
    }
    int64_t at = e - f.k * wide;
    if (at >= 2 * f.k * square) {
      at -= 2 * f.k * square;
      store_number<T>(f.grad_b, f.dtype, at, Layer<T>(f, totals, at / m).t[at % m]);
      continue;
    }
    const bool second = at >= f.k * square;
    if (second) at -= f.k * square;
    const int64_t k = at / square, i = at % square / m, j = at % m;
    const Layer<T> of(f, totals, k);
    const auto dt = [&](int64_t a, int64_t b) {
      return sign * ((f.inverse ? of.square[a * m + b] : T(0)) + (a == b ? of.c(f)[a] : T(0)));
    };
    if (i <= j && !second) {
      for (int64_t row = 0; row < d; ++row) sum = fma(q(k, row, i), sign * of.u[row * m + j], sum);
      for (int64_t l = 0; l <= i; ++l) sum = fma(r2(k, l, i), dt(l, j), sum);
    } else if (i <= j) {
      for (int64_t row = 0; row < d; ++row) sum = fma(of.w[row * m + i], q(k, row, j), sum);
      for (int64_t l = j; l < m; ++l) sum = fma(dt(i, l), r1(k, j, l), sum);
    }
    store_number<T>(second ? f.grad_r2 : f.grad_r1, f.dtype, at, sum);
  }
}

template <class T>
Memory<T> memory_of(const Sylvester& f, bool backward) {
  Memory<T> at;
  at.kept = static_cast<T*>(f.workspace);
  at.products = at.kept + (backward ? row_chunks(f.n) * SylvesterTile(f).kept(f) : 0);
  at.totals = at.products + sylvester_products(f);
  at.parts = at.totals + sylvester_sums(f);
  return at;
}

template <class T>
void prepare(const Sylvester& f, T* products) {
  launch("sylvester_flow (products)", sylvester_prepare_kernel<T>, dim3(blocks_for(sylvester_products(f), kRowBlock)),
         dim3(kRowBlock), 0, f.stream, f, products);
}

// f(integral_constant of rows a thread, bytes of shared memory)
template <class T, class F>
void dispatch_tile(const Sylvester& s, F&& f) {
  const SylvesterTile tile(s);
  const std::size_t column = SylvesterTile::numbers(tile.per) * sizeof(T);
  const std::size_t bytes =
      row_bytes("sylvester_flow", tile.columns * column, kMaxShared / column - kRowWarps, "D + 2M");
  if constexpr (sizeof(T) == 4)
    if (tile.per == 4) return f(std::integral_constant<int, 4>{}, bytes);
  f(std::integral_constant<int, 1>{}, bytes);
}

}  // namespace

void sylvester_forward(const Sylvester& f) {
  dispatch_real(f.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_tile<T>(f, [&](auto per, std::size_t bytes) {
      constexpr int kPer = decltype(per)::value;
      const Memory<T> memory = memory_of<T>(f, false);
      prepare<T>(f, memory.products);
      launch("sylvester_forward", sylvester_forward_kernel<T, kPer>, dim3(blocks_for(f.n, kPer * kWarpSize)),
             dim3(kRowBlock), bytes, f.stream, f, memory.products);
    });
  });
}

void sylvester_backward(const Sylvester& f) {
  dispatch_real(f.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_tile<T>(f, [&](auto per, std::size_t bytes) {
      constexpr int kPer = decltype(per)::value;
      const Memory<T> memory = memory_of<T>(f, true);
      const int64_t chunks = row_chunks(f.n);
      prepare<T>(f, memory.products);
      launch("sylvester_backward", sylvester_backward_kernel<T, kPer>, dim3(static_cast<unsigned>(chunks)),
             dim3(kRowBlock), bytes, f.stream, f, memory);
      launch("sylvester_backward (sum of chunks)", sylvester_sums_kernel<T>,
             dim3(blocks_for(sylvester_sums(f), kWarpSize)), dim3(kRowBlock), 0, f.stream, f, memory, chunks);
      launch("sylvester_backward (arguments)", sylvester_gradients_kernel<T>,
             dim3(blocks_for(f.k * (f.d * f.m + 2 * f.m * f.m + f.m), kRowBlock)), dim3(kRowBlock), 0, f.stream, f,
             memory.totals);
    });
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
