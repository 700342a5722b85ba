// A torch tensor as it crosses the binding: the few facts that a kernel needs. torch's headers stay outside.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace gf {

struct Tensor {
  static constexpr int kMaxDim = 8;
  void* data;
  int64_t shape[kMaxDim];
  int64_t stride[kMaxDim];  // in elements; not filled where contiguous
  int ndim;
  DType dtype;
  int device;  // CUDA device index; -1: the CPU
  bool defined, contiguous;

  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < ndim; ++i) n *= shape[i];
    return n;
  }
};

}  // namespace gf
