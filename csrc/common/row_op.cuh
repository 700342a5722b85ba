// The drivers of row_op.h on CUDA. In the backward a block takes a chunk of rows, and each of its warps sums into a
// part of the workspace of its own; a second kernel adds the parts in order.
#pragma once

#include "launch.cuh"
#include "row_op.h"
#include "rows.cuh"

namespace gf {
inline namespace GF_BACKEND {
namespace {  // of each file that includes this: a kernel belongs to one file's device code

template <class T, class Args>
__global__ void __launch_bounds__(kRowBlock) row_forward_kernel(Args f, RowGroups g) {
  GroupedRows<T> rows(g, f.d, f.dtype);
  rows.for_each(0, f.n, [&] { forward_rows(f, rows, dynamic_shared<T>()); }, blockIdx.x, gridDim.x);
}

template <class T, class Args>
__global__ void __launch_bounds__(kRowBlock) row_backward_kernel(Args f, RowGroups g, int64_t sums) {
  const int64_t block = blockIdx.x;
  T* part = static_cast<T*>(f.workspace) + (block * kRowWarps + warp_index()) * sums;
  T* kept = static_cast<T*>(f.workspace) + gridDim.x * kRowWarps * sums + block * f.kept() * g.numbers();
  for (int64_t i = lane_index(); i < sums; i += kWarpSize) part[i] = T(0);
  __syncthreads();
  GroupedRows<T> rows(g, f.d, f.dtype);
  const Chunk chunk = chunk_of(f.n, block);
  rows.for_each(chunk.begin, chunk.end, [&] { backward_rows(f, rows, dynamic_shared<T>(), kept, part); });
}

// One gradient: `count` sums from the place `first` in each of the parts.
template <class T>
__global__ void __launch_bounds__(kRowBlock) row_sums_kernel(const T* workspace, int64_t parts, int64_t sums,
                                                             int64_t first, int64_t count, void* to, DType dtype) {
  sum_chunks<1, kRowWarps>(
      workspace, parts, sums, count, [&](int64_t i, int) { return first + i; },
      [&](int64_t i, const T(&total)[1]) { store_number<T>(to, dtype, i, total[0]); });
}

}  // namespace

template <class T>
std::size_t shared_bytes(const char* op, const RowGroups& g) {
  return row_bytes(op, static_cast<std::size_t>(g.numbers()) * sizeof(T), kMaxShared / sizeof(T));
}

template <class Args>
void run_forward(const char* op, const Args& f) {
  dispatch_real(f.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const RowGroups g(f.d);
    launch(op, row_forward_kernel<T, Args>, dim3(blocks_for(f.n, g.rows())), dim3(kRowBlock), shared_bytes<T>(op, g),
           f.stream, f, g);
  });
}

template <class Args>
void run_backward(const char* op, const Args& f) {
  dispatch_real(f.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const RowGroups g(f.d);
    const int64_t chunks = row_chunks(f.n), sums = sums_of(f);
    launch(op, row_backward_kernel<T, Args>, dim3(static_cast<unsigned>(chunks)), dim3(kRowBlock),
           shared_bytes<T>(op, g), f.stream, f, g, sums);
    int64_t first = 0;
    Args(f).parameters([&](const void*, void* gradient, int64_t count) {
      launch(op, row_sums_kernel<T>, dim3(blocks_for(count, kWarpSize)), dim3(kRowBlock), 0, f.stream,
             static_cast<const T*>(f.workspace), chunks * kRowWarps, sums, first, count, gradient, f.dtype);
      first += count;
    });
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
