// Copies from global to shared memory that run while the thread goes on (cp.async of sm_80; plain copies before).
//   async_copy<16>(&tile[stage][i], &global[j]);   4, 8 or 16 aligned bytes; where `valid` is false, zeros
//   async_copy_commit();                           ends this thread's current group
//   async_copy_wait<1>();                          all of this thread's groups but the last 1 have landed
// Other threads see the data after a __syncthreads() that follows the wait. The emulation fills the destination with
// 0xff bytes at the call and copies at the wait, so that a read before it, or a wait for too few, shows.
#pragma once

#include <cstdint>

#include "device.cuh"

namespace gf {
inline namespace GF_BACKEND {

template <int Bytes>
__device__ __forceinline__ void async_copy(void* shared, const void* global, bool valid = true) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "an asynchronous copy moves 4, 8 or 16 bytes");
#if defined(GF_SIMT)
  ::gf::emu::async_copy(shared, valid ? global : nullptr, Bytes);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int size = valid ? Bytes : 0;
  if (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(size) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(global), "n"(Bytes), "r"(size)
                 : "memory");
  }
#else
  struct alignas(Bytes) Chunk {
    unsigned words[Bytes / 4];
  };
  *static_cast<Chunk*>(shared) = valid ? *static_cast<const Chunk*>(global) : Chunk{};
#endif
}

__device__ __forceinline__ void async_copy_commit() {
#if defined(GF_SIMT)
  ::gf::emu::async_copy_commit();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int Pending = 0>
__device__ __forceinline__ void async_copy_wait() {
#if defined(GF_SIMT)
  ::gf::emu::async_copy_wait(Pending);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#endif
}

}  // namespace GF_BACKEND
}  // namespace gf
