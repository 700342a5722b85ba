// Arithmetic, bit, conversion, memory and atomic built-ins of CUDA. One CUDA thread runs at a time (runtime.h), so the
// atomics are plain read-modify-writes.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/simt/runtime.h"

namespace gf::emu {

template <class To, class From>
To reinterpret_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// Hides a value from the optimiser, so that a rounded product is not contracted into a fused multiply-add.
template <class T>
inline T rounded(T value) {
  volatile T v = value;
  return v;
}

template <class T, class Op>
T atomic(T* address, Op op) {
  const T old = *address;
  *address = op(old);
  return old;
}

template <class T>
T clamp_round(double value, double low, double high) {
  if (value != value) return 0;
  return value <= low ? static_cast<T>(low) : value >= high ? static_cast<T>(high) : static_cast<T>(value);
}

}  // namespace gf::emu

// Bits
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
inline int __clzll(long long v) { return v == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(v)); }
inline unsigned __brev(unsigned v) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= ((v >> i) & 1u) << (31 - i);
  return r;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  const std::uint64_t v = (static_cast<std::uint64_t>(high) << 32) | low;
  return static_cast<unsigned>((v << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  const std::uint64_t v = (static_cast<std::uint64_t>(high) << 32) | low;
  return static_cast<unsigned>(v >> (shift & 31));
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const std::uint64_t v = (static_cast<std::uint64_t>(b) << 32) | a;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned s = (selector >> (4 * i)) & 0xf;
    unsigned byte = static_cast<unsigned>(v >> (8 * (s & 7))) & 0xff;
    if ((s & 8) != 0) byte = (byte & 0x80) != 0 ? 0xff : 0;
    r |= byte << (8 * i);
  }
  return r;
}

// Integers
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((std::uint64_t{a} * b) >> 32); }
inline int __mulhi(int a, int b) { return static_cast<int>((std::int64_t{a} * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline int __dp4a(int a, int b, int c) {
  unsigned sum = static_cast<unsigned>(c);
  for (int i = 0; i < 4; ++i) {
    sum += static_cast<unsigned>(static_cast<std::int8_t>(a >> (8 * i)) * static_cast<std::int8_t>(b >> (8 * i)));
  }
  return static_cast<int>(sum);
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 4; ++i) c += ((a >> (8 * i)) & 0xff) * ((b >> (8 * i)) & 0xff);
  return c;
}

// Floating point, one rounding an operation
inline float __fadd_rn(float a, float b) { return gf::emu::rounded(a + b); }
inline float __fsub_rn(float a, float b) { return gf::emu::rounded(a - b); }
inline float __fmul_rn(float a, float b) { return gf::emu::rounded(a * b); }
inline float __fdiv_rn(float a, float b) { return gf::emu::rounded(a / b); }
inline float __frcp_rn(float a) { return gf::emu::rounded(1.0f / a); }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return gf::emu::rounded(a + b); }
inline double __dsub_rn(double a, double b) { return gf::emu::rounded(a - b); }
inline double __dmul_rn(double a, double b) { return gf::emu::rounded(a * b); }
inline double __ddiv_rn(double a, double b) { return gf::emu::rounded(a / b); }
inline double __drcp_rn(double a) { return gf::emu::rounded(1.0 / a); }
inline double __dsqrt_rn(double a) { return sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

// Floating point, the approximate ones at full precision
inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
inline double rsqrt(double a) { return 1.0 / sqrt(a); }
inline float __frsqrt_rn(float a) { return static_cast<float>(1.0 / sqrt(static_cast<double>(a))); }
inline float __expf(float a) { return expf(a); }
inline float __logf(float a) { return logf(a); }
inline float __log2f(float a) { return log2f(a); }
inline float __sinf(float a) { return sinf(a); }
inline float __cosf(float a) { return cosf(a); }
inline float __powf(float a, float b) { return powf(a, b); }
inline float __fdividef(float a, float b) { return a / b; }
inline float fdividef(float a, float b) { return a / b; }
inline float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; }
inline float sinpif(float a) {
  const float r = remainderf(a, 2.0f);
  return static_cast<float>(sin(static_cast<double>(r) * 3.14159265358979323846));
}
inline float cospif(float a) {
  const float r = remainderf(a, 2.0f);
  return static_cast<float>(cos(static_cast<double>(r) * 3.14159265358979323846));
}
inline double sinpi(double a) { return sin(remainder(a, 2.0) * 3.14159265358979323846); }
inline double cospi(double a) { return cos(remainder(a, 2.0) * 3.14159265358979323846); }

// Conversions; out of range saturates, NaN becomes 0
inline int __float2int_rn(float v) { return gf::emu::clamp_round<int>(rintf(v), -2147483648.0, 2147483647.0); }
inline int __float2int_rz(float v) { return gf::emu::clamp_round<int>(truncf(v), -2147483648.0, 2147483647.0); }
inline int __float2int_rd(float v) { return gf::emu::clamp_round<int>(floorf(v), -2147483648.0, 2147483647.0); }
inline int __float2int_ru(float v) { return gf::emu::clamp_round<int>(ceilf(v), -2147483648.0, 2147483647.0); }
inline unsigned __float2uint_rn(float v) { return gf::emu::clamp_round<unsigned>(rintf(v), 0.0, 4294967295.0); }
inline unsigned __float2uint_rz(float v) { return gf::emu::clamp_round<unsigned>(truncf(v), 0.0, 4294967295.0); }
inline int __double2int_rn(double v) { return gf::emu::clamp_round<int>(rint(v), -2147483648.0, 2147483647.0); }
inline int __double2int_rz(double v) { return gf::emu::clamp_round<int>(trunc(v), -2147483648.0, 2147483647.0); }
inline float __double2float_rn(double v) { return static_cast<float>(v); }
inline float __int2float_rn(int v) { return static_cast<float>(v); }
inline float __uint2float_rn(unsigned v) { return static_cast<float>(v); }
inline float __ll2float_rn(long long v) { return static_cast<float>(v); }
inline double __int2double_rn(int v) { return static_cast<double>(v); }
inline double __ll2double_rn(long long v) { return static_cast<double>(v); }
inline int __float_as_int(float v) { return gf::emu::reinterpret_bits<int>(v); }
inline unsigned __float_as_uint(float v) { return gf::emu::reinterpret_bits<unsigned>(v); }
inline float __int_as_float(int v) { return gf::emu::reinterpret_bits<float>(v); }
inline float __uint_as_float(unsigned v) { return gf::emu::reinterpret_bits<float>(v); }
inline long long __double_as_longlong(double v) { return gf::emu::reinterpret_bits<long long>(v); }
inline double __longlong_as_double(long long v) { return gf::emu::reinterpret_bits<double>(v); }

// Smaller and larger, as CUDA overloads them; a NaN loses against a number
#define GF_SIMT_MIN_MAX(type)                                         \
  inline constexpr type min(type a, type b) { return b < a ? b : a; } \
  inline constexpr type max(type a, type b) { return a < b ? b : a; }
GF_SIMT_MIN_MAX(int)
GF_SIMT_MIN_MAX(unsigned)
GF_SIMT_MIN_MAX(long)
GF_SIMT_MIN_MAX(unsigned long)
GF_SIMT_MIN_MAX(long long)
GF_SIMT_MIN_MAX(unsigned long long)
#undef GF_SIMT_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

// Memory
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcg(T* p, T v) {
  *p = v;
}
template <class T>
void __stcs(T* p, T v) {
  *p = v;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
[[noreturn]] inline void __trap() { gf::emu::fail("__trap()"); }

// Atomics; each returns what was there before
#define GF_SIMT_ATOMIC(type, name, expression)                                     \
  inline type name(type* address, type v) {                                        \
    return gf::emu::atomic(address, [v](type old) -> type { return expression; }); \
  }
#define GF_SIMT_ATOMIC_INTEGER(type)                                                                      \
  GF_SIMT_ATOMIC(type, atomicMin, v < old ? v : old)                                                      \
  GF_SIMT_ATOMIC(type, atomicMax, old < v ? v : old)                                                      \
  GF_SIMT_ATOMIC(type, atomicAnd, old& v)                                                                 \
  GF_SIMT_ATOMIC(type, atomicOr, old | v)                                                                 \
  GF_SIMT_ATOMIC(type, atomicXor, old ^ v)                                                                \
  inline type atomicCAS(type* address, type compare, type v) {                                            \
    return gf::emu::atomic(address, [compare, v](type old) -> type { return old == compare ? v : old; }); \
  }
GF_SIMT_ATOMIC_INTEGER(int)
GF_SIMT_ATOMIC_INTEGER(unsigned)
GF_SIMT_ATOMIC_INTEGER(unsigned long long)
GF_SIMT_ATOMIC(int, atomicAdd, static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(v)))
GF_SIMT_ATOMIC(unsigned, atomicAdd, old + v)
GF_SIMT_ATOMIC(unsigned long long, atomicAdd, old + v)
GF_SIMT_ATOMIC(float, atomicAdd, old + v)
GF_SIMT_ATOMIC(double, atomicAdd, old + v)
GF_SIMT_ATOMIC(int, atomicSub, static_cast<int>(static_cast<unsigned>(old) - static_cast<unsigned>(v)))
GF_SIMT_ATOMIC(unsigned, atomicSub, old - v)
GF_SIMT_ATOMIC(unsigned, atomicInc, old >= v ? 0 : old + 1)
GF_SIMT_ATOMIC(int, atomicExch, (static_cast<void>(old), v))
GF_SIMT_ATOMIC(unsigned, atomicExch, (static_cast<void>(old), v))
GF_SIMT_ATOMIC(float, atomicExch, (static_cast<void>(old), v))
#undef GF_SIMT_ATOMIC_INTEGER
#undef GF_SIMT_ATOMIC
