// As much of the CUDA runtime as launch.cuh calls, for tests on machines without one: what is launched and which limits
// are set is written down.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <set>
#include <string>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __align__(n) __attribute__((aligned(n)))
#define __shared__
#define __CUDA_ARCH_LIST__ 900

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;
using cudaStream_t = void*;

enum cudaError_t {
  cudaSuccess,
  cudaErrorInvalidValue,
  cudaErrorNoKernelImageForDevice,
  cudaErrorUnsupportedPtxVersion,
  cudaErrorInvalidDeviceFunction,
  cudaErrorInsufficientDriver
};
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaFuncAttributes {
  std::size_t sharedSizeBytes;
};

namespace fake {

inline std::mutex mutex;
inline std::map<const void*, int> limits;  // of dynamic shared memory; absent: 48 KiB
inline int times_set = 0, launches = 0;
inline bool lowered = false;
constexpr int kOptin = 227 * 1024, kStatic = 1024;

}  // namespace fake

inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = fake::kOptin, cudaSuccess;
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) {
  return a->sharedSizeBytes = fake::kStatic, cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  const std::lock_guard<std::mutex> lock(fake::mutex);
  ++fake::times_set;
  fake::lowered = fake::lowered || (fake::limits.count(kernel) && value < fake::limits[kernel]);
  if (value > fake::kOptin - fake::kStatic) return cudaErrorInvalidValue;
  fake::limits[kernel] = value;
  return cudaSuccess;
}
inline cudaError_t cudaLaunchKernel(const void* kernel, dim3, dim3, void**, std::size_t bytes, cudaStream_t) {
  const std::lock_guard<std::mutex> lock(fake::mutex);
  const int limit = fake::limits.count(kernel) ? fake::limits[kernel] : 48 * 1024;
  if (static_cast<int>(bytes) > limit) return cudaErrorInvalidValue;
  ++fake::launches;
  return cudaSuccess;
}
