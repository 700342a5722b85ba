// CUDA's qualifiers, index variables and vector types for a host compiler.
#pragma once

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ use_the_macro_GF_SHARED_of_device_cuh

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define GF_SIMT_HIDDEN __attribute__((visibility("hidden")))
extern GF_SIMT_HIDDEN uint3 threadIdx;
extern GF_SIMT_HIDDEN uint3 blockIdx;
extern GF_SIMT_HIDDEN dim3 blockDim;
extern GF_SIMT_HIDDEN dim3 gridDim;
constexpr int warpSize = 32;

#define GF_SIMT_VECTOR(type, name)                                                            \
  struct alignas(2 * sizeof(type)) name##2 { type x, y; };                                    \
  struct alignas(4 * sizeof(type) < 16 ? 4 * sizeof(type) : 16) name##4 { type x, y, z, w; }; \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }                            \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
GF_SIMT_VECTOR(float, float)
GF_SIMT_VECTOR(double, double)
GF_SIMT_VECTOR(int, int)
GF_SIMT_VECTOR(unsigned, uint)
GF_SIMT_VECTOR(short, short)
GF_SIMT_VECTOR(unsigned short, ushort)
GF_SIMT_VECTOR(signed char, char)
GF_SIMT_VECTOR(unsigned char, uchar)
GF_SIMT_VECTOR(long long, longlong)
GF_SIMT_VECTOR(unsigned long long, ulonglong)
#undef GF_SIMT_VECTOR

struct float3 {
  float x, y, z;
};
struct int3 {
  int x, y, z;
};
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline int3 make_int3(int x, int y, int z) { return {x, y, z}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
