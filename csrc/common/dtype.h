// The element types that cross the binding, and the type each of them is computed in.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "macros.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace gf {

enum class DType : int { f32, f64, f16, bf16, i64, i32, u8, b8, other };

// Bytes of one number.
inline int64_t size_of(DType t) {
  constexpr int64_t bytes[] = {4, 8, 2, 2, 8, 4, 1, 1, 0};
  return bytes[static_cast<int>(t)];
}

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline namespace GF_BACKEND {

template <class S>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};
// The arithmetic type of a storage type: float32 for everything but float64.
template <class S>
using compute_t = typename Compute<S>::type;

// The spacing of a storage type's numbers just above 1.
template <class S>
constexpr double storage_epsilon();
template <>
constexpr double storage_epsilon<double>() {
  return 0x1p-52;
}
template <>
constexpr double storage_epsilon<float>() {
  return 0x1p-23;
}
template <>
constexpr double storage_epsilon<Half>() {
  return 0x1p-10;
}
template <>
constexpr double storage_epsilon<BFloat16>() {
  return 0x1p-7;
}

// The same of a dtype, in the type it is computed in.
template <class T>
GF_HD T storage_epsilon(DType t) {
  return static_cast<T>(t == DType::f64   ? storage_epsilon<double>()
                        : t == DType::f32 ? storage_epsilon<float>()
                        : t == DType::f16 ? storage_epsilon<Half>()
                                          : storage_epsilon<BFloat16>());
}

template <class To, class From>
GF_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

GF_HD float to_real(float x) { return x; }
GF_HD double to_real(double x) { return x; }

GF_HD float to_real(BFloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

GF_HD float to_real(Half x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(x.bits));
#else
  // Place exponent and mantissa in a float and rescale by 2^112: right for normal and subnormal numbers alike.
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t rest = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  if (rest >= 0x0f800000u) return bit_cast<float>(sign | 0x7f800000u | (rest & 0x007fffffu));  // inf, NaN
  return bit_cast<float>(bit_cast<uint32_t>(bit_cast<float>(rest) * 0x1p112f) | sign);
#endif
}

template <class S>
GF_HD S from_real(compute_t<S> x);

template <>
GF_HD float from_real<float>(float x) {
  return x;
}
template <>
GF_HD double from_real<double>(double x) {
  return x;
}

template <>
GF_HD BFloat16 from_real<BFloat16>(float x) {
  const uint32_t b = bit_cast<uint32_t>(x);
  if ((b & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((b >> 16) | 0x40u)};  // NaN stays NaN
  return {static_cast<uint16_t>((b + 0x7fffu + ((b >> 16) & 1u)) >> 16)};                  // round to nearest, even
}

template <>
GF_HD Half from_real<Half>(float x) {
#if defined(__CUDA_ARCH__)
  return {__half_as_ushort(__float2half_rn(x))};
#else
  const uint32_t b = bit_cast<uint32_t>(x);
  const uint16_t sign = static_cast<uint16_t>((b >> 16) & 0x8000u);
  const uint32_t a = b & 0x7fffffffu;
  if (a > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (a >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to 2^16 or more
  if (a < 0x38800000u) {
    // Subnormal half: adding 0.5 leaves the mantissa, rounded to nearest even, in the low bits.
    const uint32_t m = bit_cast<uint32_t>(bit_cast<float>(a) + 0.5f) - 0x3f000000u;
    return {static_cast<uint16_t>(sign | m)};
  }
  return {static_cast<uint16_t>(sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13))};
#endif
}

template <class S>
struct TypeTag {
  using type = S;
};

// Calls f(TypeTag<T>{}) with the type that a floating dtype is computed in.
template <class F>
inline void dispatch_real(DType dtype, F&& f) {
  dtype == DType::f64 ? f(TypeTag<double>{}) : f(TypeTag<float>{});
}

// Calls f(TypeTag<S>{}) with the storage type of a floating dtype.
template <class F>
inline void dispatch_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(TypeTag<float>{});
    case DType::f64:
      return f(TypeTag<double>{});
    case DType::f16:
      return f(TypeTag<Half>{});
    case DType::bf16:
      return f(TypeTag<BFloat16>{});
    default:
      throw std::invalid_argument("expected a floating-point tensor (float32, float64, float16 or bfloat16)");
  }
}

}  // namespace GF_BACKEND
}  // namespace gf
