// Rounds an RBM's weights to fixed point on the GPU (gibbs.h says how) and splits them into the int8 operands of
// tensor cores. Maxima and integer sums only: atomics may come in any order.
#pragma once

#include "common/gibbs.h"
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "ops/rbm/rbm.h"

namespace gf {
inline namespace GF_BACKEND {

constexpr int kRbmPlanes = 3;
// An int32 weight is d0 + 2^8 d1 + 2^16 d2 with signed bytes. The operand of (word of 32 output units, chunk of 32
// input units) is [plane][pair of 8-unit tiles][lane][tile of the pair][register] of mma_m16n8k32_s8's B.
constexpr int kRbmFragment = kRbmPlanes * 4 * kWarpSize * 2;

struct RbmScalars {
  unsigned long long largest_weight, largest_bias;  // magnitude bits of doubles
  int exponent;
  int lost;  // a number is not finite
};

struct RbmDevice {
  RbmSizes size;
  const void *W, *vbias, *hbias;
  unsigned *weights_h, *weights_v;  // fragments [words of the output][words of the input][kRbmFragment]
  int *bias_h, *bias_v;
  int *row_sums, *column_sums;
  RbmScalars* scalars;
  int* status;
  int64_t most;                // weights of a unit
  int64_t chunks_h, chunks_v;  // words of input of a hidden unit, and of a visible one

  RbmDevice() = default;
  RbmDevice(const RbmGibbs& f, const RbmWorkspace& at)
      : size(f.size),
        W(f.W),
        vbias(f.vbias),
        hbias(f.hbias),
        weights_h(reinterpret_cast<unsigned*>(f.workspace + at.weights_h)),
        weights_v(reinterpret_cast<unsigned*>(f.workspace + at.weights_v)),
        bias_h(f.workspace + at.bias_h),
        bias_v(f.workspace + at.bias_v),
        row_sums(f.workspace + at.bounds),
        column_sums(row_sums + kRbmPanel * at.panels_v),
        scalars(reinterpret_cast<RbmScalars*>(f.workspace + at.scalars)),
        status(f.status ? f.status : f.workspace + at.scalars + 15),
        most(size.nv > size.nh ? size.nv : size.nh),
        chunks_h(words_v()),
        chunks_v(words_h()) {}

  GF_HD int64_t words_v() const { return (size.nv + kRbmWord - 1) / kRbmWord; }
  GF_HD int64_t words_h() const { return (size.nh + kRbmWord - 1) / kRbmWord; }
  GF_HD int64_t units_v() const { return words_v() * kRbmWord; }
  GF_HD int64_t units_h() const { return words_h() * kRbmWord; }
  __device__ unsigned long long largest() const {
    const unsigned long long w = scalars->largest_weight, b = scalars->largest_bias;
    return w > b ? w : b;
  }
  __device__ FixedPointScale bound_scale() const { return FixedPointScale(largest(), most); }
};

inline __global__ void rbm_clear_kernel(RbmDevice p) {
  for (int64_t i = grid_thread(); i < p.size.nv; i += grid_threads()) p.row_sums[i] = 0;
  for (int64_t j = grid_thread(); j < p.size.nh; j += grid_threads()) p.column_sums[j] = 0;
  if (grid_thread() == 0) {
    *p.scalars = RbmScalars{0, 0, 0, 0};
    *p.status = 0;
  }
}

template <class T>
__global__ void rbm_magnitude_kernel(RbmDevice p) {
  const T* W = static_cast<const T*>(p.W);
  const T* a = static_cast<const T*>(p.vbias);
  const T* b = static_cast<const T*>(p.hbias);
  const int64_t nv = p.size.nv, nh = p.size.nh;
  const auto bits = [](T x) { return static_cast<unsigned long long>(magnitude_bits(static_cast<double>(x))); };
  unsigned long long m[2] = {0, 0};
  for (int64_t i = grid_thread(); i < nv * nh; i += grid_threads()) m[0] = bits(W[i]) > m[0] ? bits(W[i]) : m[0];
  for (int64_t i = grid_thread(); i < nv; i += grid_threads()) m[1] = bits(a[i]) > m[1] ? bits(a[i]) : m[1];
  for (int64_t j = grid_thread(); j < nh; j += grid_threads()) m[1] = bits(b[j]) > m[1] ? bits(b[j]) : m[1];
  block_max(m);
  if (threadIdx.x == 0) {
    atomicMax(&p.scalars->largest_weight, m[0]);
    atomicMax(&p.scalars->largest_bias, m[1]);
  }
}

// A block sums the bounds of 64 columns and 64 rows.
template <class T>
__global__ void rbm_bounds_kernel(RbmDevice p) {
  if (p.largest() >= kInfinityBits) return;
  const T unit = p.bound_scale().template unit<T>();
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 64 + threadIdx.x % 64;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * 64 + threadIdx.x / 64;
  int column_sum = 0;
  for (int i = 0; i < 64; i += 4) {
    const int64_t row = first + i;
    const bool inside = row < p.size.nv && column < p.size.nh;
    const int x = inside ? fixed_point_bound(static_cast<const T*>(p.W)[row * p.size.nh + column], unit) : 0;
    column_sum += x;
    const int row_sum = warp_sum(x);
    if (lane_index() == 0 && row < p.size.nv) atomicAdd(&p.row_sums[row], row_sum);
  }
  if (column < p.size.nh) atomicAdd(&p.column_sums[column], column_sum);
}

// One block: the exponent, and the biases.
template <class T>
__global__ void rbm_exponent_kernel(RbmDevice p) {
  const T* a = static_cast<const T*>(p.vbias);
  const T* b = static_cast<const T*>(p.hbias);
  if (p.largest() >= kInfinityBits) {
    if (threadIdx.x == 0) {
      p.scalars->lost = 1;
      atomicOr(p.status, static_cast<int>(kRbmNotFinite));
    }
    return;
  }
  const FixedPointScale scale = p.bound_scale();
  const T unit = scale.template unit<T>();
  int largest = 0;
  for (int64_t i = threadIdx.x; i < p.size.nv; i += blockDim.x) {
    const int sum = p.row_sums[i] + fixed_point_bound(a[i], unit);
    largest = sum > largest ? sum : largest;
  }
  for (int64_t j = threadIdx.x; j < p.size.nh; j += blockDim.x) {
    const int sum = p.column_sums[j] + fixed_point_bound(b[j], unit);
    largest = sum > largest ? sum : largest;
  }
  const int e = scale.fixed_point_exponent(block_max(largest), p.scalars->largest_weight);
  const T inverse = power_of_two<T>(-e);
  if (threadIdx.x == 0) p.scalars->exponent = e;
  for (int64_t i = threadIdx.x; i < p.units_v(); i += blockDim.x)
    p.bias_v[i] = i < p.size.nv ? round_even(a[i] * inverse) : 0;
  for (int64_t j = threadIdx.x; j < p.units_h(); j += blockDim.x)
    p.bias_h[j] = j < p.size.nh ? round_even(b[j] * inverse) : 0;
}

// A thread rounds four weights of one output unit and stores them as one register of each plane.
template <class T, bool kHidden>
__global__ void rbm_fragments_kernel(RbmDevice p) {
  if (p.scalars->lost) return;
  const T inverse = power_of_two<T>(-p.scalars->exponent);
  const int64_t n_out = kHidden ? p.size.nh : p.size.nv, n_in = kHidden ? p.size.nv : p.size.nh;
  const int64_t chunks = kHidden ? p.words_v() : p.words_h(), words = kHidden ? p.words_h() : p.words_v();
  unsigned* fragments = kHidden ? p.weights_h : p.weights_v;
  for (int64_t index = grid_thread(); index < words * chunks * 256; index += grid_threads()) {
    const int slot = static_cast<int>(index % 256), reg = slot % 2, tile = slot / 2 % 2 + 2 * (slot / 128);
    const int lane = slot / 4 % kWarpSize;
    const int64_t word = index / 256 / chunks, chunk = index / 256 % chunks;
    const int64_t out = word * kRbmWord + tile * 8 + lane / 4, in = chunk * kRbmWord + reg * 16 + lane % 4 * 4;
    unsigned planes[kRbmPlanes] = {0, 0, 0};
    GF_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int64_t k = in + i;
      if (out >= n_out || k >= n_in) continue;
      const T w = static_cast<const T*>(p.W)[kHidden ? k * p.size.nh + out : out * p.size.nh + k];
      int q = round_even(w * inverse);
      GF_UNROLL
      for (int plane = 0; plane < kRbmPlanes; ++plane) {
        const int digit = static_cast<int8_t>(q & 0xff);
        planes[plane] |= static_cast<unsigned>(digit & 0xff) << (8 * i);
        q = (q - digit) >> 8;
      }
    }
    unsigned* to = fragments + (word * (kHidden ? p.chunks_h : p.chunks_v) + chunk) * kRbmFragment + slot;
    GF_UNROLL
    for (int plane = 0; plane < kRbmPlanes; ++plane) to[plane * 256] = planes[plane];
  }
}

template <class T>
inline void launch_magnitude(const RbmDevice& p, Stream stream) {
  launch("rbm_magnitude", rbm_magnitude_kernel<T>, blocks_for(p.size.nv * p.size.nh, 1024, 512), 256, 0, stream, p);
}

template <class T>
inline void launch_bounds(const RbmDevice& p, Stream stream) {
  const unsigned columns = static_cast<unsigned>((p.size.nh + 63) / 64),
                 rows = static_cast<unsigned>((p.size.nv + 63) / 64);
  launch("rbm_bounds", rbm_bounds_kernel<T>, dim3(columns, rows), 256, 0, stream, p);
}

template <class T>
inline void launch_fragments(const RbmDevice& p, Stream stream) {
  const unsigned blocks = blocks_for(p.words_v() * p.words_h() * 256, 256, 4096);
  launch("rbm_fragments", rbm_fragments_kernel<T, true>, blocks, 256, 0, stream, p);
  launch("rbm_fragments", rbm_fragments_kernel<T, false>, blocks, 256, 0, stream, p);
}

template <class T>
inline void launch_quantise(const RbmDevice& p, Stream stream) {
  launch("rbm_clear", rbm_clear_kernel, blocks_for(p.size.nv + p.size.nh, 256, 64), 256, 0, stream, p);
  launch_magnitude<T>(p, stream);
  launch_bounds<T>(p, stream);
  launch("rbm_exponent", rbm_exponent_kernel<T>, 1, 512, 0, stream, p);
  launch_fragments<T>(p, stream);
}

}  // namespace GF_BACKEND
}  // namespace gf
