// Planar flow on CUDA. A group of lanes keeps a row in registers through all layers: one thread for narrow rows, up to
// a warp for D = 1024 in float32. Wider rows lie in shared memory, a block to a row. The weights of a tile of layers
// are staged in shared memory in the compute type, with w.u of each.
//
// Gradients of the parameters: each block sums one chunk of rows (chunks.h) into its part of the workspace, and a
// second kernel adds the parts in order. So a result depends on neither scheduling nor launch shape.
#include "ops/planar/planar_rows.cuh"

namespace gf {
inline namespace GF_BACKEND {
namespace {

using namespace planar;

constexpr std::size_t kTileBytes = 40 * 1024;  // shared memory for the weights of a tile

template <class T, int kPer>
__global__ void __launch_bounds__(kBlock, 4) planar_forward_kernel(PlanarForward f, Shape s) {
  using R = Rows<T, kPer>;
  const Tile<T> tile(dynamic_shared<T>(), s);
  const Order order = f.inverse ? Order{f.size.k - 1, -1} : Order{0, 1};
  const int64_t n = f.size.n, depth = f.size.k;
  const int lane = block_thread() & (s.lanes - 1);
  const int64_t rows = kBlock >> s.log_lanes;
  const bool one_tile = depth <= s.tile;
  if (one_tile) tile.load(f.w, f.u, f.b, f.dtype, f.size, s, order, 0, f.inverse);

  for (int64_t first = blockIdx.x * rows; first < n; first += gridDim.x * rows) {
    const int64_t row = first + (block_thread() >> s.log_lanes);
    const bool active = row < n;
    T z[kPer];
    R::load(f.input, f.dtype, row, f.size.d, active, lane, s.lanes, z);
    T sum_log = T(0);
    for (int64_t i0 = 0; i0 < depth; i0 += s.tile) {
      if (!one_tile) tile.load(f.w, f.u, f.b, f.dtype, f.size, s, order, i0, f.inverse);
      const int layers = static_cast<int>(depth - i0 < s.tile ? depth - i0 : s.tile);
      GF_ROLLED
      for (int j = 0; j < layers; ++j) {
        T dot = T(0);
        R::each(tile.w + j * s.width, lane, s.lanes, [&](int e, T w) { dot = fma(w, z[e], dot); });
        T a = group_sum(dot, s.lanes) + tile.b[j];
        const Step<T> step = planar_step(a, tile.wu[j], f.inverse);
        sum_log += step.log_q;
        if (f.a != nullptr && active && lane == 0) static_cast<T*>(f.a)[order.layer(i0 + j) * n + row] = a;
        R::each(tile.u + j * s.width, lane, s.lanes, [&](int e, T u) { z[e] = fma(u, step.h, z[e]); });
      }
    }
    R::store(f.output, f.dtype, row, f.size.d, active, lane, s.lanes, z);
    if (active && lane == 0) static_cast<T*>(f.log_det)[row] = f.inverse ? -sum_log : sum_log;
  }
}

template <class T, int kPer>
__global__ void __launch_bounds__(kBlock, 3) planar_backward_kernel(PlanarBackward f, Shape s) {
  using R = Rows<T, kPer>;
  T* memory = dynamic_shared<T>();
  const Tile<T> tile(memory, s);
  const int sums = 2 * s.width + 2;     // of one layer: grad_w, grad_u, grad_b, c
  T* partial = memory + s.tile * sums;  // [kWarps, sums]; sums numbers are also what a layer of the tile takes
  T* mine = partial + warp_index() * sums;
  const Part<T> part(f, blockIdx.x);
  part.clear(f.size);

  const Order order = f.inverse ? Order{0, 1} : Order{f.size.k - 1, -1};
  const int64_t n = f.size.n, d = f.size.d, depth = f.size.k;
  const Chunk chunk = chunk_of(n, blockIdx.x);
  const int lane = block_thread() & (s.lanes - 1);
  const int64_t rows = kBlock >> s.log_lanes;
  const bool one_tile = depth <= s.tile;
  if (one_tile) tile.load(f.w, f.u, f.b, f.dtype, f.size, s, order, 0, f.inverse);

  for (int64_t first = chunk.begin; first < chunk.end; first += rows) {
    const int64_t row = first + (block_thread() >> s.log_lanes);
    const bool active = row < chunk.end;
    T z[kPer], g[kPer];
    R::load(f.output, f.dtype, row, d, active, lane, s.lanes, z);
    R::load(f.grad_output, f.dtype, row, d, active, lane, s.lanes, g);
    const T l = active ? static_cast<const T*>(f.grad_log_det)[row] : T(0);
    for (int64_t i0 = 0; i0 < depth; i0 += s.tile) {
      if (!one_tile) tile.load(f.w, f.u, f.b, f.dtype, f.size, s, order, i0, f.inverse);
      const int layers = static_cast<int>(depth - i0 < s.tile ? depth - i0 : s.tile);
      GF_ROLLED
      for (int j = 0; j < layers; ++j) {
        const int64_t k = order.layer(i0 + j);
        const T wu = tile.wu[j];
        // Rows that do not exist get a saturated layer: there q = 1, and their zero cotangents stay zero.
        const PlanarLayer<T> layer = planar_layer(active ? static_cast<const T*>(f.a)[k * n + row] : T(40), wu);
        T ug = T(0);
        R::each(tile.u + j * s.width, lane, s.lanes, [&](int e, T u) { ug = fma(u, g[e], ug); });
        ug = group_sum(ug, s.lanes);
        const PlanarAdjoint<T> adjoint =
            f.inverse ? planar_adjoint<true>(layer, wu, ug, l) : planar_adjoint<false>(layer, wu, ug, l);

        T to_w[kPer];
        R::each(tile.u + j * s.width, lane, s.lanes, [&](int e, T u) {
          // w.z of the layer is taken at its input: after the step here going down the stack, before it going up.
          const T now = fma(u, f.inverse ? layer.h : -layer.h, z[e]);
          to_w[e] = adjoint.t * (f.inverse ? z[e] : now);
          z[e] = now;
        });
        sum_over_rows<kPer, kWarpSize / 2>(to_w, s.lanes, 0,
                                           [&](int e, T sum) { mine[R::component(e, lane, s.lanes)] = sum; });
        T to_u[kPer];
        R::each(tile.w + j * s.width, lane, s.lanes, [&](int e, T w) {
          const T grad = fma(adjoint.t, w, g[e]);
          to_u[e] = layer.h * (f.inverse ? -grad : g[e]);
          g[e] = grad;
        });
        sum_over_rows<kPer, kWarpSize / 2>(to_u, s.lanes, 0,
                                           [&](int e, T sum) { mine[s.width + R::component(e, lane, s.lanes)] = sum; });
        T scalars[2] = {lane == 0 ? adjoint.t : T(0), lane == 0 ? (f.inverse ? -adjoint.c : adjoint.c) : T(0)};
        warp_sum(scalars);
        if (lane_index() == 0) {
          mine[2 * s.width] = scalars[0];
          mine[2 * s.width + 1] = scalars[1];
        }
        __syncthreads();
        for (int i = block_thread(); i < sums; i += kBlock) {
          T total = partial[i];
          for (int warp = 1; warp < kWarps; ++warp) total += partial[warp * sums + i];
          if (i < s.width) {
            if (i < d) part.w[k * d + i] += total;
          } else if (i < 2 * s.width) {
            if (i - s.width < d) part.u[k * d + i - s.width] += total;
          } else {
            (i == 2 * s.width ? part.b : part.c)[k] += total;
          }
        }
        __syncthreads();
      }
    }
    R::store(f.grad_input, f.dtype, row, d, active, lane, s.lanes, g);
  }
}

// --- rows wider than registers
// ----------------------------------------------------------------------------------------

// A block to a row, which lies in shared memory; weights come from global memory.
template <class T>
__global__ void __launch_bounds__(kBlock, 4) planar_wide_forward_kernel(PlanarForward f) {
  T* z = dynamic_shared<T>();
  const int64_t n = f.size.n, d = f.size.d, depth = f.size.k;
  const Order order = f.inverse ? Order{depth - 1, -1} : Order{0, 1};
  for (int64_t row = blockIdx.x; row < n; row += gridDim.x) {
    for (int64_t c = block_thread(); c < d; c += kBlock) z[c] = load_number<T>(f.input, f.dtype, row * d + c);
    T sum_log = T(0);
    for (int64_t i = 0; i < depth; ++i) {
      const int64_t k = order.layer(i);
      T sums[3] = {T(0), T(0), T(0)};  // w.z, w.u, sum |w u|; a thread reads and writes its own components only
      for (int64_t c = block_thread(); c < d; c += kBlock) {
        const T w = load_number<T>(f.w, f.dtype, k * d + c), u = load_number<T>(f.u, f.dtype, k * d + c);
        sums[0] = fma(w, z[c], sums[0]);
        sums[1] = fma(w, u, sums[1]);
        sums[2] += abs(w * u);
      }
      block_sum(sums);
      const T wu = f.inverse ? planar_invertible_wu(sums[1], sums[2], storage_epsilon<T>(f.dtype)) : sums[1];
      T a = sums[0] + load_number<T>(f.b, f.dtype, k);
      const Step<T> step = planar_step(a, wu, f.inverse);
      sum_log += step.log_q;
      if (f.a != nullptr && block_thread() == 0) static_cast<T*>(f.a)[k * n + row] = a;
      for (int64_t c = block_thread(); c < d; c += kBlock)
        z[c] = fma(load_number<T>(f.u, f.dtype, k * d + c), step.h, z[c]);
    }
    for (int64_t c = block_thread(); c < d; c += kBlock) store_number<T>(f.output, f.dtype, row * d + c, z[c]);
    if (block_thread() == 0) static_cast<T*>(f.log_det)[row] = f.inverse ? -sum_log : sum_log;
  }
}

template <class T>
__global__ void __launch_bounds__(kBlock, 4) planar_wide_backward_kernel(PlanarBackward f) {
  const int64_t n = f.size.n, d = f.size.d, depth = f.size.k;
  T* z = dynamic_shared<T>();
  T* g = z + d;
  const Order order = f.inverse ? Order{0, 1} : Order{depth - 1, -1};
  const Part<T> part(f, blockIdx.x);
  part.clear(f.size);
  const Chunk chunk = chunk_of(n, blockIdx.x);
  for (int64_t row = chunk.begin; row < chunk.end; ++row) {
    for (int64_t c = block_thread(); c < d; c += kBlock) {
      z[c] = load_number<T>(f.output, f.dtype, row * d + c);
      g[c] = load_number<T>(f.grad_output, f.dtype, row * d + c);
    }
    const T l = static_cast<const T*>(f.grad_log_det)[row];
    for (int64_t i = 0; i < depth; ++i) {
      const int64_t k = order.layer(i);
      T sums[3] = {T(0), T(0), T(0)};
      for (int64_t c = block_thread(); c < d; c += kBlock) {
        const T w = load_number<T>(f.w, f.dtype, k * d + c), u = load_number<T>(f.u, f.dtype, k * d + c);
        sums[0] = fma(u, g[c], sums[0]);
        sums[1] = fma(w, u, sums[1]);
        sums[2] += abs(w * u);
      }
      block_sum(sums);
      const T wu = f.inverse ? planar_invertible_wu(sums[1], sums[2], storage_epsilon<T>(f.dtype)) : sums[1];
      const PlanarLayer<T> layer = planar_layer(static_cast<const T*>(f.a)[k * n + row], wu);
      const PlanarAdjoint<T> adjoint =
          f.inverse ? planar_adjoint<true>(layer, wu, sums[0], l) : planar_adjoint<false>(layer, wu, sums[0], l);
      for (int64_t c = block_thread(); c < d; c += kBlock) {
        const T w = load_number<T>(f.w, f.dtype, k * d + c), u = load_number<T>(f.u, f.dtype, k * d + c);
        const T now = fma(u, f.inverse ? layer.h : -layer.h, z[c]), grad = fma(adjoint.t, w, g[c]);
        part.w[k * d + c] += adjoint.t * (f.inverse ? z[c] : now);
        part.u[k * d + c] += layer.h * (f.inverse ? -grad : g[c]);
        z[c] = now;
        g[c] = grad;
      }
      if (block_thread() == 0) {
        part.b[k] += adjoint.t;
        part.c[k] += f.inverse ? -adjoint.c : adjoint.c;
      }
    }
    for (int64_t c = block_thread(); c < d; c += kBlock) store_number<T>(f.grad_input, f.dtype, row * d + c, g[c]);
  }
}

// --- the sum over chunks
// ----------------------------------------------------------------------------------------------

// grad_w = sum part_w + u sum c, grad_u = sum part_u + w sum c, grad_b = sum part_b.
template <class T>
__global__ void __launch_bounds__(kBlock, 4) planar_reduce_kernel(PlanarBackward f, int64_t chunks) {
  const int64_t kd = f.size.k * f.size.d;  // entries past it are biases
  sum_chunks<3, kWarps>(
      static_cast<const T*>(f.workspace), chunks, planar_sums(f.size), kd + f.size.k,
      [&](int64_t i, int q) -> int64_t {
        if (i >= kd) return q == 0 ? kd + i : -1;
        return q == 0 ? i : q == 1 ? kd + i : 2 * kd + f.size.k + i / f.size.d;
      },
      [&](int64_t i, const T(&sums)[3]) {
        if (i >= kd) return store_number<T>(f.grad_b, f.dtype, i - kd, sums[0]);
        store_number<T>(f.grad_w, f.dtype, i, fma(sums[2], load_number<T>(f.u, f.dtype, i), sums[0]));
        store_number<T>(f.grad_u, f.dtype, i, fma(sums[2], load_number<T>(f.w, f.dtype, i), sums[1]));
      });
}

// --- launches
// ---------------------------------------------------------------------------------------------------------

// The most numbers of a row that a thread keeps: in the backward, which has z, g and their products, half as many.
template <class T>
constexpr int kMaxForward = sizeof(T) == 8 ? 16 : 32;
template <class T>
constexpr int kMaxBackward = kMaxForward<T> / 2;

template <class T>
Shape shape_of(const PlanarSizes& size, int per) {
  Shape s{1, 0, per, 1};
  while (s.width < size.d) {
    s.lanes *= 2;
    ++s.log_lanes;
    s.width *= 2;
  }
  const int64_t fits = static_cast<int64_t>(kTileBytes / ((2 * s.width + 2) * sizeof(T)));
  const int64_t wanted = size.k < 1 ? 1 : size.k;
  s.tile = static_cast<int>(fits < 1 ? 1 : fits < wanted ? fits : wanted);
  return s;
}

std::size_t wide_bytes(int64_t numbers, std::size_t size_of) {
  return row_bytes("planar_flow", numbers * size_of, kMaxShared / (2 * size_of));
}

template <class T>
void run_forward(const PlanarForward& f) {
  if (f.size.d > kWarpSize * kMaxForward<T>) {
    launch("planar_forward (wide rows)", planar_wide_forward_kernel<T>, dim3(blocks_for(f.size.n, 1)), dim3(kBlock),
           wide_bytes(f.size.d, sizeof(T)), f.stream, f);
    return;
  }
  dispatch_per<kMaxForward<T>>(f.size.d, [&](auto per) {
    constexpr int kPer = decltype(per)::value;
    const Shape s = shape_of<T>(f.size, kPer);
    launch("planar_forward", planar_forward_kernel<T, kPer>, dim3(blocks_for(f.size.n, kBlock / s.lanes)), dim3(kBlock),
           Tile<T>::bytes(s), f.stream, f, s);
  });
}

// Where only the input was kept: the forward, into the end of the workspace.
template <class T>
PlanarBackward with_forward(PlanarBackward f) {
  T* a = static_cast<T*>(f.workspace) + chunk_workspace(f.size.n, planar_sums(f.size));
  T* log_det = a + f.size.k * f.size.n;
  T* output = log_det + f.size.n;
  run_forward<T>({f.size, f.dtype, false, f.input, f.w, f.u, f.b, output, log_det, a, f.stream});
  f.a = a;
  f.output = output;
  return f;
}

template <class T>
void run_backward(const PlanarBackward& given) {
  const PlanarBackward f = given.a == nullptr ? with_forward<T>(given) : given;
  const int64_t chunks = row_chunks(f.size.n);
  const dim3 grid(static_cast<unsigned>(chunks));
  if (f.size.d > kWarpSize * kMaxBackward<T>) {
    launch("planar_backward (wide rows)", planar_wide_backward_kernel<T>, grid, dim3(kBlock),
           wide_bytes(2 * f.size.d, sizeof(T)), f.stream, f);
  } else {
    dispatch_per<kMaxBackward<T>>(f.size.d, [&](auto per) {
      constexpr int kPer = decltype(per)::value;
      const Shape s = shape_of<T>(f.size, kPer);
      launch("planar_backward", planar_backward_kernel<T, kPer>, grid, dim3(kBlock),
             Tile<T>::bytes(s) + kWarps * (2 * s.width + 2) * sizeof(T), f.stream, f, s);
    });
  }
  const int64_t entries = f.size.k * f.size.d + f.size.k;
  launch("planar_backward (sum of chunks)", planar_reduce_kernel<T>, dim3(blocks_for(entries, kWarpSize)), dim3(kBlock),
         0, f.stream, f, chunks);
}

}  // namespace

void planar_forward(const PlanarForward& f) { f.dtype == DType::f64 ? run_forward<double>(f) : run_forward<float>(f); }

void planar_backward(const PlanarBackward& f) {
  f.dtype == DType::f64 ? run_backward<double>(f) : run_backward<float>(f);
}

}  // namespace GF_BACKEND
}  // namespace gf
