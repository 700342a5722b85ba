// Warp and block reductions. Every thread gets the result, the order of the operations is fixed by the block's shape
// alone (so a result is the same on every run), and N values reduce together for the price of one barrier.
// Every thread of the warp or block must call; the block's size is a multiple of 32.
//   float s = warp_sum(x);            warp_sum<8>(x) over each aligned group of 8 lanes
//   float s = block_sum(x);           also block_max
//   float v[3]; block_sum(v);         in place, three sums at once
#pragma once

#include "device.cuh"

namespace gf {
inline namespace GF_BACKEND {

struct ReduceSum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

// A NaN wins, whichever side it is on.
struct ReduceMax {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a > b || a != a ? a : b;
  }
};

constexpr unsigned kFullWarp = 0xffffffffu;

template <int Width = kWarpSize, class Op, class T, int N>
__device__ __forceinline__ void warp_reduce(T (&v)[N], Op op) {
  static_assert(Width >= 1 && Width <= kWarpSize && (Width & (Width - 1)) == 0, "Width is a power of two up to 32");
  GF_UNROLL
  for (int offset = Width / 2; offset > 0; offset /= 2) {
    GF_UNROLL
    for (int i = 0; i < N; ++i) v[i] = op(v[i], __shfl_xor_sync(kFullWarp, v[i], offset));
  }
}

template <class Op, class T, int N>
__device__ __forceinline__ void block_reduce(T (&v)[N], Op op) {
  GF_SHARED(T, partial, [N][kWarpSize]);
  const int warps = block_threads() / kWarpSize;
  warp_reduce(v, op);
  if (warps == 1) return;
  if (lane_index() == 0) {
    GF_UNROLL
    for (int i = 0; i < N; ++i) partial[i][warp_index()] = v[i];
  }
  __syncthreads();
  GF_UNROLL
  for (int i = 0; i < N; ++i) {
    T total = partial[i][0];
    for (int w = 1; w < warps; ++w) total = op(total, partial[i][w]);
    v[i] = total;
  }
  __syncthreads();  // the next call writes `partial` again
}

template <int Width = kWarpSize, class T, int N>
__device__ __forceinline__ void warp_sum(T (&v)[N]) {
  warp_reduce<Width>(v, ReduceSum());
}
template <class T, int N>
__device__ __forceinline__ void block_sum(T (&v)[N]) {
  block_reduce(v, ReduceSum());
}
template <class T, int N>
__device__ __forceinline__ void block_max(T (&v)[N]) {
  block_reduce(v, ReduceMax());
}

template <int Width = kWarpSize, class T>
__device__ __forceinline__ T warp_sum(T value) {
  T v[1] = {value};
  warp_reduce<Width>(v, ReduceSum());
  return v[0];
}
template <class T>
__device__ __forceinline__ T block_sum(T value) {
  T v[1] = {value};
  block_reduce(v, ReduceSum());
  return v[0];
}
template <class T>
__device__ __forceinline__ T block_max(T value) {
  T v[1] = {value};
  block_reduce(v, ReduceMax());
  return v[0];
}

}  // namespace GF_BACKEND
}  // namespace gf
