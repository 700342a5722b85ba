// Radial flow on CUDA: all K layers over the rows that a block holds in shared memory. In the backward a block takes a
// chunk of rows, and each of its warps sums into a part of the workspace of its own.
#include "common/launch.cuh"
#include "common/rows.cuh"
#include "ops/radial/radial_math.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

template <class T>
__global__ void __launch_bounds__(kRowBlock) radial_forward_kernel(Radial f, RowGroups g) {
  GroupedRows<T> rows(g, f.d, f.dtype);
  const auto run = [&] { radial_forward_rows(f, rows, dynamic_shared<T>()); };
  rows.for_each(0, f.n, run, blockIdx.x, gridDim.x);
}

template <class T>
__global__ void __launch_bounds__(kRowBlock) radial_backward_kernel(Radial f, RowGroups g) {
  const int64_t sums = radial_sums(f), block = blockIdx.x;
  T* part = static_cast<T*>(f.workspace) + (block * kRowWarps + warp_index()) * sums;
  T* kept = static_cast<T*>(f.workspace) + gridDim.x * kRowWarps * sums + block * f.k * g.numbers();
  for (int64_t i = lane_index(); i < sums; i += kWarpSize) part[i] = T(0);
  __syncthreads();
  GroupedRows<T> rows(g, f.d, f.dtype);
  const Chunk chunk = chunk_of(f.n, block);
  rows.for_each(chunk.begin, chunk.end, [&] { radial_backward_rows(f, rows, dynamic_shared<T>(), kept, part); });
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
    const unsigned chunks = static_cast<unsigned>(row_chunks(f.n));
    launch("radial_backward", radial_backward_kernel<T>, dim3(chunks), dim3(kRowBlock), shared_bytes<T>(g), f.stream, f,
           g);
    launch("radial_backward (sum of parts)", radial_sums_kernel<T>, dim3(blocks_for(radial_sums(f), kWarpSize)),
           dim3(kRowBlock), 0, f.stream, f, static_cast<int64_t>(chunks) * kRowWarps);
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
