// States of units as they lie in tensors: 0 and 1 in any dtype.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace gf {
inline namespace GF_BACKEND {

// How a dtype writes 0, 1 and NaN. `sign` is the bit that tells -0 from 0.
template <class E>
struct StateCode {
  E one, nan, sign;
};

// Calls f with the code of float32 or float64.
template <class F>
inline void dispatch_wide_state(DType dtype, F&& f) {
  dtype == DType::f64 ? f(StateCode<uint64_t>{0x3ff0000000000000u, 0x7ff8000000000000u, 0x8000000000000000u})
                      : f(StateCode<uint32_t>{0x3f800000u, 0x7fc00000u, 0x80000000u});
}

// Calls f with the code of a dtype.
template <class F>
inline void dispatch_state(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
    case DType::f64:
      return dispatch_wide_state(dtype, f);
    case DType::f16:
      return f(StateCode<uint16_t>{0x3c00u, 0x7e00u, 0x8000u});
    case DType::bf16:
      return f(StateCode<uint16_t>{0x3f80u, 0x7fc0u, 0x8000u});
    case DType::i64:
      return f(StateCode<uint64_t>{1, 0, 0});
    case DType::i32:
      return f(StateCode<uint32_t>{1, 0, 0});
    default:
      return f(StateCode<uint8_t>{1, 0, 0});
  }
}

}  // namespace GF_BACKEND
}  // namespace gf
