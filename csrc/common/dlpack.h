// The part of DLPack's C exchange interface (version 1) by which torch tells what a tensor is without a Python
// attribute: torch.Tensor.__dlpack_c_exchange_api__, a capsule with a table of functions. Older versions of torch lack
// it.
#pragma once

#include <cstdint>

#include "tensor_arg.h"

namespace gf {
namespace dlpack {

struct View {
  void* data;
  int32_t device_type, device_index;
  int32_t ndim;
  uint8_t type_code, type_bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct Exchange {
  uint32_t major, minor;
  Exchange* previous;
  void *allocate, *managed_from_python, *managed_to_python;
  int (*view)(void* python_object, View* out);  // borrows; does not look at the object's type
  int (*current_stream)(int32_t device_type, int32_t device_index, void** out);
};

constexpr int32_t kCpu = 1, kCuda = 2;

inline DType dtype_of(const View& v) {
  if (v.lanes != 1) return DType::other;
  switch (v.type_code << 8 | v.type_bits) {
    case 2 << 8 | 32:
      return DType::f32;
    case 2 << 8 | 64:
      return DType::f64;
    case 2 << 8 | 16:
      return DType::f16;
    case 4 << 8 | 16:
      return DType::bf16;
    case 0 << 8 | 64:
      return DType::i64;
    case 0 << 8 | 32:
      return DType::i32;
    case 1 << 8 | 8:
      return DType::u8;
    case 6 << 8 | 8:
      return DType::b8;
    default:
      return DType::other;
  }
}

}  // namespace dlpack
}  // namespace gf
