// Where a kernel runs: the queue of the caller and its device.
#pragma once

namespace gf {

struct Stream {
  void* handle = nullptr;  // cudaStream_t; null on the CPU
  int device = -1;         // CUDA device index; -1 on the CPU
};

}  // namespace gf
