// Radial flow on CUDA. A row lies in shared memory, dealt out to threads as row_groups.h says. In the backward a block
// takes a chunk of rows, and each of its warps sums into a part of the workspace of its own.
#include "common/launch.cuh"
#include "common/rows.cuh"
#include "ops/radial/radial.h"
#include "ops/radial/radial_math.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

// f(component, place) for each number of the thread's row; places past the row's end hold zeros.
template <class F>
__device__ __forceinline__ void each(const RowGroups& g, F&& f) {
  const int thread = block_thread(), lane = thread & (g.lanes - 1);
  GF_ROLLED
  for (int e = 0; e < g.per; ++e) f(int64_t{e} * g.lanes + lane, e * kRowBlock + thread);
}

template <class T>
__device__ __forceinline__ void load_rows(const Radial& f, const RowGroups& g, const void* p, bool active, int64_t row,
                                          T* to) {
  each(g, [&](int64_t c, int at) { to[at] = active && c < f.d ? load_number<T>(p, f.dtype, row * f.d + c) : T(0); });
}

template <class T>
__device__ __forceinline__ void store_rows(const Radial& f, const RowGroups& g, void* p, bool active, int64_t row,
                                           const T* from) {
  each(g, [&](int64_t c, int at) {
    if (active && c < f.d) store_number<T>(p, f.dtype, row * f.d + c, from[at]);
  });
}

// All layers over the rows in z; the row's log|det|. `kept`, where it is wanted, gets z - center of each layer, z on the
// side before its forward.
template <bool kKeep, class T>
__device__ __forceinline__ T run_layers(const Radial& f, const RowGroups& g, T* z, T* kept) {
  T log_det = T(0);
  for (int64_t i = 0; i < f.k; ++i) {
    const int64_t k = f.inverse ? f.k - 1 - i : i;
    const auto center = [&](int64_t c) { return c < f.d ? load_number<T>(f.center, f.dtype, k * f.d + c) : T(0); };
    T square = T(0);
    each(g, [&](int64_t c, int at) {
      const T e = z[at] - center(c);
      square = fma(e, e, square);
    });
    const RadialLayer<T> layer =
        radial_layer(f.inverse, row_sum(square, g.lanes), load_number<T>(f.alpha, f.dtype, k),
                     load_number<T>(f.beta, f.dtype, k));
    if (!kKeep) log_det += radial_log_det(layer, f.d);
    each(g, [&](int64_t c, int at) {
      const T e = z[at] - center(c), moved = layer.scale * e;
      if (kKeep) kept[k * g.numbers() + at] = f.inverse ? moved : e;
      z[at] = center(c) + moved;
    });
  }
  return f.inverse ? -log_det : log_det;
}

template <class T>
__global__ void __launch_bounds__(kRowBlock) radial_forward_kernel(Radial f, RowGroups g) {
  T* z = dynamic_shared<T>();
  for (int64_t first = int64_t{blockIdx.x} * g.rows(); first < f.n; first += int64_t{gridDim.x} * g.rows()) {
    const int64_t row = first + block_thread() / g.lanes;
    const bool active = row < f.n;
    load_rows(f, g, f.input, active, row, z);
    const T log_det = run_layers<false>(f, g, z, static_cast<T*>(nullptr));
    store_rows(f, g, f.output, active, row, z);
    if (active && block_thread() % g.lanes == 0) static_cast<T*>(f.log_det)[row] = log_det;
  }
}

template <class T>
__global__ void __launch_bounds__(kRowBlock) radial_backward_kernel(Radial f, RowGroups g) {
  T* grad = dynamic_shared<T>();  // first z
  const int64_t sums = radial_sums(f);
  T* part = static_cast<T*>(f.workspace) + (int64_t{blockIdx.x} * kRowWarps + warp_index()) * sums;
  T* kept = static_cast<T*>(f.workspace) + gridDim.x * kRowWarps * sums + blockIdx.x * f.k * g.numbers();
  for (int64_t i = lane_index(); i < sums; i += kWarpSize) part[i] = T(0);
  __syncthreads();
  const Chunk chunk = chunk_of(f.n, blockIdx.x);
  for (int64_t first = chunk.begin; first < chunk.end; first += g.rows()) {
    const int64_t row = first + block_thread() / g.lanes;
    const bool active = row < chunk.end;
    load_rows(f, g, f.input, active, row, grad);
    run_layers<true>(f, g, grad, kept);
    load_rows(f, g, f.grad_output, active, row, grad);
    const T l = active ? static_cast<const T*>(f.grad_log_det)[row] : T(0);
    for (int64_t i = 0; i < f.k; ++i) {
      const int64_t k = f.inverse ? i : f.k - 1 - i;
      const T* e = kept + k * g.numbers();
      T square = T(0), v = T(0);
      each(g, [&](int64_t, int at) {
        square = fma(e[at], e[at], square);
        v = fma(grad[at], e[at], v);
      });
      square = row_sum(square, g.lanes);
      // Rows that do not exist lie at distance 1, where nothing is infinite, and their zero cotangents stay zero.
      const RadialLayer<T> layer = radial_layer(false, active ? square : T(1), load_number<T>(f.alpha, f.dtype, k),
                                                load_number<T>(f.beta, f.dtype, k));
      const RadialAdjoint<T> adjoint = radial_adjoint(f.inverse, layer, row_sum(v, g.lanes), l, f.d);
      each(g, [&](int64_t c, int at) {
        const T pull = adjoint.pull * e[at];
        const T center = sum_of_rows(fma(adjoint.change, grad[at], pull), g.lanes);
        grad[at] = fma(adjoint.scale, grad[at], pull);
        if (c < f.d && lane_index() < g.lanes) part[k * f.d + c] -= center;
      });
      const T alpha = sum_of_rows(adjoint.alpha, g.lanes), beta = sum_of_rows(adjoint.beta, g.lanes);
      if (lane_index() == 0 && block_thread() % g.lanes == 0) {
        part[f.k * f.d + k] += alpha;
        part[f.k * f.d + f.k + k] += beta;
      }
    }
    store_rows(f, g, f.grad_input, active, row, grad);
  }
}

template <class T>
__global__ void __launch_bounds__(kRowBlock) radial_sums_kernel(Radial f, int64_t parts) {
  const int64_t kd = f.k * f.d;
  sum_chunks<1, kRowWarps>(
      static_cast<const T*>(f.workspace), parts, radial_sums(f), radial_sums(f), [](int64_t i, int) { return i; },
      [&](int64_t i, const T(&sums)[1]) {
        void* to = i < kd ? f.grad_center : i < kd + f.k ? f.grad_alpha : f.grad_beta;
        store_number<T>(to, f.dtype, i < kd ? i : (i - kd) % f.k, sums[0]);
      });
}

template <class T>
std::size_t shared_bytes(const RowGroups& g) {
  return row_bytes("radial_flow", static_cast<std::size_t>(g.numbers()) * sizeof(T), kMaxShared / sizeof(T));
}

}  // namespace

void radial_forward(const Radial& f) {
  dispatch_real(f.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const RowGroups g(f.d);
    launch("radial_forward", radial_forward_kernel<T>, dim3(blocks_for(f.n, g.rows())), dim3(kRowBlock),
           shared_bytes<T>(g), f.stream, f, g);
  });
}

void radial_backward(const Radial& f) {
  dispatch_real(f.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const RowGroups g(f.d);
    const int64_t chunks = row_chunks(f.n);
    launch("radial_backward", radial_backward_kernel<T>, dim3(static_cast<unsigned>(chunks)), dim3(kRowBlock),
           shared_bytes<T>(g), f.stream, f, g);
    launch("radial_backward (sum of parts)", radial_sums_kernel<T>, dim3(blocks_for(radial_sums(f), kWarpSize)),
           dim3(kRowBlock), 0, f.stream, f, chunks * kRowWarps);
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
