// Runs a CUDA grid on one OS thread: blocks one after the other, the threads of a block as fibers that switch only
// at barriers, shuffles and votes. A kernel without these runs as a plain loop.
//
// It is stricter than a GPU. A launch fails with the kernel, block, thread and source line where a warp or block
// collective cannot complete, where a shuffle reads a lane that does not take part, where different __syncthreads()
// meet, where dynamic shared memory was written past its end, and where a launch shape exceeds sm_90. Shared memory
// starts as 0xff bytes. GENFAST_SIMT_ORDER=forward|reverse|random chooses the order of threads and blocks (random is
// seeded by GENFAST_SIMT_SEED), so that a missing barrier shows as results that depend on it.
// Not emulated: waiting for another block, clusters, textures, streams (a launch returns when the grid is done).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/simt/types.h"

namespace gf::emu {

struct Site {
  const char* file;
  int line;
};

// Runs body(closure) once for every thread of the grid; throws std::runtime_error. One grid at a time in a process.
void run_grid(const char* kernel, dim3 grid, dim3 block, std::size_t shared_bytes, void (*body)(void*), void* closure);

// Ends the launch with an error that names kernel, block and thread. Called by a running CUDA thread.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...);

// Waits for the whole block and returns how many threads gave a true predicate; arrived is how many there were.
struct BarrierVote {
  int in_favour;
  int arrived;
};
BarrierVote block_barrier(const char* what, bool predicate, Site site);

// Waits for the lanes of `mask`; the last to arrive calls combine(payloads by lane, null where the lane has exited).
using Combine = void (*)(void* const* payloads);
void warp_collective(const char* what, unsigned mask, void* payload, Combine combine, Site site);

int lane();
int block_thread();
unsigned char* dynamic_shared();

// A block's copy of one static __shared__ variable; Tag tells variables of one type apart.
extern std::uint64_t block_epoch;
template <class T, class Tag>
T& static_shared(Tag) {
  static_assert(std::is_trivially_copyable_v<T>, "shared memory holds plain data");
  alignas(16) static unsigned char storage[sizeof(T)];
  static std::uint64_t epoch = 0;
  if (epoch != block_epoch) {
    std::memset(storage, 0xff, sizeof(T));
    epoch = block_epoch;
  }
  return reinterpret_cast<T&>(storage);
}

}  // namespace gf::emu
