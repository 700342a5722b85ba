// Numbers, packets and rows of a tensor on CUDA, and sums over lanes, rows and chunks. Half types are converted where
// they are read and written; everything else is float or double.
#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>

#include "chunks.h"
#include "device.cuh"
#include "dtype.h"
#include "reduce.cuh"
#include "row_groups.h"

namespace gf {
inline namespace GF_BACKEND {

// Number i.
template <class T>
__device__ __forceinline__ T load_number(const void* p, DType dtype, int64_t i) {
  if constexpr (sizeof(T) == 8) {
    return static_cast<const double*>(p)[i];
  } else {
    if (dtype == DType::f16) return to_real(static_cast<const Half*>(p)[i]);
    if (dtype == DType::bf16) return to_real(static_cast<const BFloat16*>(p)[i]);
    return static_cast<const float*>(p)[i];
  }
}

template <class T>
__device__ __forceinline__ void store_number(void* p, DType dtype, int64_t i, T x) {
  if constexpr (sizeof(T) == 8) {
    static_cast<double*>(p)[i] = x;
  } else if (dtype == DType::f16) {
    static_cast<Half*>(p)[i] = from_real<Half>(x);
  } else if (dtype == DType::bf16) {
    static_cast<BFloat16*>(p)[i] = from_real<BFloat16>(x);
  } else {
    static_cast<float*>(p)[i] = x;
  }
}

// kVec neighbouring numbers that one instruction moves.
template <class T, int kVec>
struct alignas(sizeof(T) * kVec) Packet {
  T v[kVec];
};

template <class S, int kVec, class T>
__device__ __forceinline__ void load_packet_of(const void* p, int64_t i, T (&out)[kVec]) {
  const Packet<S, kVec> x = *reinterpret_cast<const Packet<S, kVec>*>(static_cast<const S*>(p) + i);
  GF_UNROLL
  for (int e = 0; e < kVec; ++e) out[e] = to_real(x.v[e]);
}

template <class S, int kVec, class T>
__device__ __forceinline__ void store_packet_of(void* p, int64_t i, const T (&in)[kVec]) {
  Packet<S, kVec> x;
  GF_UNROLL
  for (int e = 0; e < kVec; ++e) x.v[e] = from_real<S>(in[e]);
  *reinterpret_cast<Packet<S, kVec>*>(static_cast<S*>(p) + i) = x;
}

// Numbers i ... i + kVec - 1; p + i is aligned to all of them.
template <int kVec, class T>
__device__ __forceinline__ void load_packet(const void* p, DType dtype, int64_t i, T (&out)[kVec]) {
  if constexpr (sizeof(T) == 4) {
    if (dtype == DType::f16) return load_packet_of<Half>(p, i, out);
    if (dtype == DType::bf16) return load_packet_of<BFloat16>(p, i, out);
  }
  load_packet_of<T>(p, i, out);
}

template <int kVec, class T>
__device__ __forceinline__ void store_packet(void* p, DType dtype, int64_t i, const T (&in)[kVec]) {
  if constexpr (sizeof(T) == 4) {
    if (dtype == DType::f16) return store_packet_of<Half>(p, i, in);
    if (dtype == DType::bf16) return store_packet_of<BFloat16>(p, i, in);
  }
  store_packet_of<T>(p, i, in);
}

// A value summed over aligned groups of `lanes` lanes, a power of two up to a warp.
template <class T>
__device__ __forceinline__ T group_sum(T value, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullWarp, value, offset);
  return value;
}

// The same where a row has a whole block's threads; then all of them take part.
template <class T>
__device__ __forceinline__ T row_sum(T value, int lanes) {
  return lanes > kWarpSize ? block_sum(value) : group_sum(value, lanes);
}

// A value summed over the rows of a warp: over the threads that lie a multiple of `lanes` apart.
template <class T>
__device__ __forceinline__ T sum_of_rows(T value, int lanes) {
  for (int offset = kWarpSize / 2; offset >= lanes; offset /= 2) value += __shfl_xor_sync(kFullWarp, value, offset);
  return value;
}

// Sums each v[e] over the rows of a warp, which lie `lanes` threads apart, and hands every thread some of the sums: at
// each step a thread keeps half of its numbers and gives the others away. f(e, sum) for those it ends up with.
template <int kLeft, int kOffset, int kPer, class T, class F>
__device__ __forceinline__ void sum_over_rows(T (&v)[kPer], int lanes, int base, F&& f) {
  if constexpr (kOffset > 0) {
    if (kOffset >= lanes) {
      if constexpr (kLeft > 1) {
        const bool upper = (lane_index() & kOffset) != 0;
        GF_UNROLL
        for (int i = 0; i < kLeft / 2; ++i) {
          const T give = upper ? v[i] : v[i + kLeft / 2];
          const T keep = upper ? v[i + kLeft / 2] : v[i];
          v[i] = keep + __shfl_xor_sync(kFullWarp, give, kOffset);
        }
        return sum_over_rows<kLeft / 2, kOffset / 2>(v, lanes, base + (upper ? kLeft / 2 : 0), f);
      } else {
        v[0] += __shfl_xor_sync(kFullWarp, v[0], kOffset);
        return sum_over_rows<1, kOffset / 2>(v, lanes, base, f);
      }
    }
  }
  GF_UNROLL
  for (int i = 0; i < kLeft; ++i) f(base + i, v[i]);
}

// Bytes of shared memory for what a block keeps of a row; `most` is the D, or what `size` says, whose forward and
// backward fit.
constexpr std::size_t kMaxShared = 200 * 1024;
inline std::size_t row_bytes(const char* op, std::size_t bytes, std::size_t most, const char* size = "D") {
  if (bytes > kMaxShared)
    throw std::invalid_argument(std::string(op) + " on CUDA: " + size + " is too large; " + std::to_string(most) +
                                " is the most that shared memory holds forward and backward in this dtype");
  return bytes;
}

// f(integral_constant of kPer) with the smallest power of two that holds d numbers, at most kMax.
template <int kMax, int kPer = 1, class F>
void dispatch_per(int64_t d, F&& f) {
  if constexpr (kPer < kMax)
    if (d > kPer) return dispatch_per<kMax, 2 * kPer>(d, f);
  f(std::integral_constant<int, kPer>{});
}

// Adds what chunks of rows (chunks.h) left in a workspace of `stride` numbers a chunk, in an order that depends on the
// block's shape alone. For each entry, at(entry, q) is the place of its q-th sum in a chunk's numbers, or negative, and
// one thread calls done(entry, sums). All threads of a block of kWarps warps take part: its lanes take neighbouring
// entries, its warps every kWarps-th chunk each.
template <int kSums, int kWarps, class T, class At, class Done>
__device__ __forceinline__ void sum_chunks(const T* parts, int64_t chunks, int64_t stride, int64_t entries, At&& at,
                                           Done&& done) {
  GF_SHARED(T, partial, [kSums][kWarps][kWarpSize]);
  const int warp = warp_index(), lane = lane_index();
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kWarpSize; first < entries;
       first += static_cast<int64_t>(gridDim.x) * kWarpSize) {
    const int64_t i = first + lane;
    T sums[kSums];
    GF_UNROLL
    for (int q = 0; q < kSums; ++q) {
      sums[q] = T(0);
      const int64_t place = i < entries ? at(i, q) : -1;
      if (place >= 0)
        for (int64_t chunk = warp; chunk < chunks; chunk += kWarps) sums[q] += parts[chunk * stride + place];
    }
    GF_UNROLL
    for (int q = 0; q < kSums; ++q) partial[q][warp][lane] = sums[q];
    __syncthreads();
    if (warp == 0 && i < entries) {
      GF_UNROLL
      for (int q = 0; q < kSums; ++q)
        for (int other = 1; other < kWarps; ++other) sums[q] += partial[q][other][lane];
      done(i, sums);
    }
    __syncthreads();
  }
}

// What an algorithm over rows is written with: ColumnRows of columns.h, on CUDA. Rows are dealt out to the threads of a
// block as row_groups.h says, and number e of a thread lies at [e kRowBlock + thread]; those past a row's end are
// zeros.
template <class T>
class GroupedRows {
 public:
  using Number = T;
  using Real = T;

  __device__ __forceinline__ GroupedRows(const RowGroups& groups, int64_t d, DType dtype)
      : d(d), g_(groups), dtype_(dtype), lane_(block_thread() & (groups.lanes - 1)) {}

  // f() with rows begin ... end - 1 of which a block takes every `blocks`-th part.
  template <class F>
  __device__ __forceinline__ void for_each(int64_t begin, int64_t end, F&& f, int64_t block = 0, int64_t blocks = 1) {
    for (int64_t first = begin + block * g_.rows(); first < end; first += blocks * g_.rows()) {
      row_ = first + block_thread() / g_.lanes;
      active_ = row_ < end;
      f();
    }
  }
  template <class F>
  __device__ __forceinline__ void each(F&& f) const {
    const int thread = block_thread();
    GF_ROLLED
    for (int e = 0; e < g_.per; ++e) f(int64_t{e} * g_.lanes + lane_, e * kRowBlock + thread);
  }
  __device__ __forceinline__ int64_t numbers() const { return g_.numbers(); }
  __device__ __forceinline__ T parameter(const void* p, int64_t i, int64_t column = -1) const {
    return column < d ? load_number<T>(p, dtype_, i) : T(0);
  }
  __device__ __forceinline__ T row_sum(T x) const { return gf::row_sum(x, g_.lanes); }
  __device__ __forceinline__ T existing(T x, T missing) const { return active_ ? x : missing; }
  // To a sum of this warp's own.
  __device__ __forceinline__ void add(T* to, T x, int64_t column) const {
    x = sum_of_rows(x, g_.lanes);
    if (column < d && lane_index() < g_.lanes) *to += x;
  }
  __device__ __forceinline__ void add_once(T* to, T x) const {
    x = sum_of_rows(x, g_.lanes);
    if (lane_index() == 0 && lane_ == 0) *to += x;
  }
  __device__ __forceinline__ void load(const void* p, T* to) const {
    each([&](int64_t c, int at) { to[at] = active_ && c < d ? load_number<T>(p, dtype_, row_ * d + c) : T(0); });
  }
  __device__ __forceinline__ void store(void* p, const T* from) const {
    each([&](int64_t c, int at) {
      if (active_ && c < d) store_number<T>(p, dtype_, row_ * d + c, from[at]);
    });
  }
  __device__ __forceinline__ T load_sum(const void* p) const { return active_ ? static_cast<const T*>(p)[row_] : T(0); }
  __device__ __forceinline__ void store_sum(void* p, T x) const {
    if (active_ && lane_ == 0) static_cast<T*>(p)[row_] = x;
  }

  const int64_t d;

 private:
  const RowGroups g_;
  const DType dtype_;
  const int lane_;
  int64_t row_ = 0;
  bool active_ = false;
};

}  // namespace GF_BACKEND
}  // namespace gf
