// The dialect our kernels are written in. A .cu file compiles twice: by nvcc, and by a host compiler with GF_SIMT,
// where simt/ stands in for the CUDA built-ins. Everything is plain CUDA C++ except:
//   GF_SHARED(float, tile, [32][33]);      for   __shared__ float tile[32][33];     (a scalar: GF_SHARED(float, x, );)
//   float* buffer = dynamic_shared<float>();  for   extern __shared__ float buffer[];
//   GF_UNROLL, GF_ROLLED                   for   #pragma unroll, #pragma unroll 1
// The emulation fills both kinds of shared memory with 0xff bytes (NaN, -1) before each block.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(GF_SIMT)
#include "simt/cuda_builtins.h"
#define GF_UNROLL
#define GF_ROLLED
#define GF_SHARED(type, name, dims)     \
  typedef type name##_shared_type dims; \
  name##_shared_type& name = ::gf::emu::static_shared<name##_shared_type>([] {})
#elif defined(__CUDACC__)
#include <cuda_runtime.h>
#define GF_UNROLL _Pragma("unroll")
#define GF_ROLLED _Pragma("unroll 1")
#define GF_SHARED(type, name, dims) __shared__ type name dims
#else
#error "device.cuh is for .cu files: compile with nvcc, or for the host with -x c++ -DGF_SIMT"
#endif

#include "macros.h"

namespace gf {
inline namespace GF_BACKEND {

constexpr int kWarpSize = 32;

// The block's dynamic shared memory, 16-byte aligned.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#if defined(GF_SIMT)
  return reinterpret_cast<T*>(::gf::emu::dynamic_shared());
#else
  extern __shared__ __align__(16) unsigned char gf_dynamic_shared[];
  return reinterpret_cast<T*>(gf_dynamic_shared);
#endif
}

// for (std::int64_t i = grid_thread(); i < n; i += grid_threads()) {...} visits 0..n-1 once whatever the grid (1-D).
__device__ __forceinline__ std::int64_t grid_thread() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ std::int64_t grid_threads() { return static_cast<std::int64_t>(gridDim.x) * blockDim.x; }

// The thread's number within its block, and its lane and warp; for blocks of one, two or three dimensions.
__device__ __forceinline__ int block_thread() {
  return static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
}
__device__ __forceinline__ int block_threads() { return static_cast<int>(blockDim.x * blockDim.y * blockDim.z); }
__device__ __forceinline__ int lane_index() { return block_thread() % kWarpSize; }
__device__ __forceinline__ int warp_index() { return block_thread() / kWarpSize; }

// Blocks for a grid-stride loop over n items. The cap does not depend on the device, so neither does any result whose
// rounding depends on the grid.
constexpr int kMaxBlocks = 1 << 16;
inline unsigned blocks_for(std::int64_t n, int block, int max_blocks = kMaxBlocks) {
  const std::int64_t wanted = n / block + (n % block != 0);
  return static_cast<unsigned>(wanted < max_blocks ? wanted : max_blocks);
}

}  // namespace GF_BACKEND
}  // namespace gf
