// Affine coupling on CUDA. A group of lanes owns a row: the smallest power of two that covers it, up to a warp, and a
// whole block where rows are wide. Where the width allows it, a lane moves 16 bytes at a time.
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/rows.cuh"
#include "ops/coupling/coupling_math.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int kBlock = 256;
constexpr int64_t kWideRow = 4096;  // elements; from here on a block owns a row

// How the threads of a block are dealt out to rows.
struct Groups {
  int lanes;         // threads of a row: a power of two up to 32, or kBlock
  int log_lanes;     // its logarithm
  unsigned packets;  // bit q: operand q can be read or written 16 bytes at a time
};

// Numbers j ... j + kVec - 1 of row i. Which thread takes which numbers does not depend on how they are read.
template <int kVec, class T>
__device__ __forceinline__ void load_row(const Strided& m, DType dtype, bool packet, int64_t i, int64_t j,
                                         T (&out)[kVec]) {
  if (kVec > 1 && packet) return load_packet(m.data, dtype, i * m.row + j, out);
  GF_UNROLL
  for (int e = 0; e < kVec; ++e) out[e] = load_number<T>(m.data, dtype, i * m.row + (j + e) * m.col);
}

template <int kVec, class T>
__device__ __forceinline__ void store_row(const StridedOut& m, DType dtype, bool packet, int64_t i, int64_t j,
                                          const T (&in)[kVec]) {
  if (kVec > 1 && packet) return store_packet(m.data, dtype, i * m.row + j, in);
  GF_UNROLL
  for (int e = 0; e < kVec; ++e) store_number<T>(m.data, dtype, i * m.row + (j + e) * m.col, in[e]);
}

// Calls row(i, lane) for every row and every lane of its group, then done(i, lane) with all threads of the block
// together (i may lie past the end there).
template <class Row, class Done>
__device__ __forceinline__ void for_rows(int64_t n, Groups g, Row&& row, Done&& done) {
  const int lane = static_cast<int>(threadIdx.x) & (g.lanes - 1);
  const int64_t rows = kBlock >> g.log_lanes;
  for (int64_t first = blockIdx.x * rows; first < n; first += gridDim.x * rows) {
    const int64_t i = first + (threadIdx.x >> g.log_lanes);
    if (i < n) row(i, lane);
    done(i, lane);
  }
}

template <ScaleMap kMap, int kVec, class T>
__device__ __forceinline__ void forward_rows(const CouplingForward& a, const ScaleConstants<T>& k, Groups g) {
  T sum = T(0);
  for_rows(
      a.n, g,
      [&](int64_t i, int lane) {
        GF_ROLLED  // unrolled, it spills
            for (int64_t j = static_cast<int64_t>(lane) * kVec; j < a.d; j += static_cast<int64_t>(g.lanes) * kVec) {
          T x[kVec], shift[kVec], raw[kVec];
          load_row<kVec>(a.x, a.dtype, g.packets & 1u, i, j, x);
          load_row<kVec>(a.shift, a.dtype, g.packets & 2u, i, j, shift);
          load_row<kVec>(a.scale, a.dtype, g.packets & 4u, i, j, raw);
          GF_UNROLL
          for (int e = 0; e < kVec; ++e) {
            const Scale<T> f = coupling_scale<kMap>(raw[e], k);
            x[e] = coupling_apply(a.inverse, x[e], shift[e], f.s);
            sum += f.log_s;
          }
          store_row<kVec>(StridedOut{a.y, a.d, 1}, a.dtype, g.packets & 8u, i, j, x);
        }
      },
      [&](int64_t i, int lane) {
        const T total = row_sum(sum, g.lanes);
        if (lane == 0 && i < a.n) static_cast<T*>(a.log_det)[i] = a.inverse ? -total : total;
        sum = T(0);
      });
}

template <ScaleMap kMap, int kVec, class T>
__device__ __forceinline__ void backward_rows(const CouplingBackward& a, const ScaleConstants<T>& k, Groups g) {
  for_rows(
      a.n, g,
      [&](int64_t i, int lane) {
        const T l = static_cast<const T*>(a.grad_log_det.data)[i * a.grad_log_det.row];
        GF_ROLLED  // unrolled, it spills
            for (int64_t j = static_cast<int64_t>(lane) * kVec; j < a.d; j += static_cast<int64_t>(g.lanes) * kVec) {
          T grad[kVec], x[kVec], raw[kVec], shift[kVec];
          load_row<kVec>(a.grad_y, a.dtype, g.packets & 1u, i, j, grad);
          load_row<kVec>(a.kept, a.dtype, g.packets & 2u, i, j, x);
          load_row<kVec>(a.scale, a.dtype, g.packets & 4u, i, j, raw);
          GF_UNROLL
          for (int e = 0; e < kVec; ++e) {
            const CouplingAdjoint<T> adjoint =
                coupling_adjoint(a.inverse, grad[e], l, x[e], coupling_scale<kMap>(raw[e], k));
            grad[e] = adjoint.x;
            shift[e] = adjoint.shift;
            raw[e] = adjoint.raw;
          }
          store_row<kVec>(StridedOut{a.grad_x, a.d, 1}, a.dtype, g.packets & 8u, i, j, grad);
          if (a.grad_shift.data != nullptr) store_row<kVec>(a.grad_shift, a.dtype, g.packets & 16u, i, j, shift);
          store_row<kVec>(a.grad_scale, a.dtype, g.packets & 32u, i, j, raw);
        }
      },
      [](int64_t, int) {});
}

#define GF_EACH_MAP(call)                        \
  switch (a.spec.map) {                          \
    case ScaleMap::exp:                          \
      return call(ScaleMap::exp);                \
    case ScaleMap::sigmoid:                      \
      return call(ScaleMap::sigmoid);            \
    case ScaleMap::softplus:                     \
      return call(ScaleMap::softplus);           \
    case ScaleMap::tanh:                         \
      return call(ScaleMap::tanh);               \
    case ScaleMap::atan:                         \
      return call(ScaleMap::atan);               \
    case ScaleMap::softclip:                     \
      return call(ScaleMap::softclip);           \
    case ScaleMap::reciprocal_sigmoid:           \
      return call(ScaleMap::reciprocal_sigmoid); \
  }

template <class T, int kVec>
__global__ void __launch_bounds__(kBlock, sizeof(T) == 4 ? 6 : 4)
    coupling_forward_kernel(CouplingForward a, ScaleConstants<T> k, Groups g) {
#define GF_CALL(map) forward_rows<map, kVec>(a, k, g)
  GF_EACH_MAP(GF_CALL)
#undef GF_CALL
}

template <class T, int kVec>
__global__ void __launch_bounds__(kBlock) coupling_backward_kernel(CouplingBackward a, ScaleConstants<T> k, Groups g){
#define GF_CALL(map) backward_rows<map, kVec>(a, k, g)
    GF_EACH_MAP(GF_CALL)
#undef GF_CALL
}

Groups groups_for(int64_t d, int vec, unsigned packets) {
  if (d >= kWideRow) return {kBlock, 8, packets};
  Groups g{1, 0, packets};
  while (g.lanes < kWarpSize && static_cast<int64_t>(g.lanes) * vec < d) {
    g.lanes *= 2;
    ++g.log_lanes;
  }
  return g;
}

// Numbers that a thread moves at a time: 16 bytes of float; double, which is rare, goes one by one.
template <class T>
constexpr int kPacket = sizeof(T) == 4 ? 4 : 1;

// `bit` if packets can be read or written.
template <class T, class M>
unsigned packet_bit(const M& m, DType dtype, unsigned bit) {
  constexpr int vec = kPacket<T>;
  const bool adjacent = m.col == 1 && m.row % vec == 0;
  return adjacent && reinterpret_cast<std::uintptr_t>(m.data) % (vec * size_of(dtype)) == 0 ? bit : 0;
}

template <class T>
void run_forward(const CouplingForward& a) {
  constexpr int vec = kPacket<T>;
  const auto k = ScaleConstants<T>::from(a.spec);
  const auto run = [&](auto kernel, const Groups& g) {
    const dim3 grid(blocks_for(a.n, kBlock / g.lanes));
    launch("coupling_forward", kernel, grid, dim3(kBlock), 0, a.stream, a, k, g);
  };
  if (a.d % vec != 0) return run(coupling_forward_kernel<T, 1>, groups_for(a.d, 1, 0));
  const unsigned packets = packet_bit<T>(a.x, a.dtype, 1) | packet_bit<T>(a.shift, a.dtype, 2) |
                           packet_bit<T>(a.scale, a.dtype, 4) | packet_bit<T>(StridedOut{a.y, a.d, 1}, a.dtype, 8);
  run(coupling_forward_kernel<T, vec>, groups_for(a.d, vec, packets));
}

template <class T>
void run_backward(const CouplingBackward& a) {
  constexpr int vec = kPacket<T>;
  const auto k = ScaleConstants<T>::from(a.spec);
  const auto run = [&](auto kernel, const Groups& g) {
    const dim3 grid(blocks_for(a.n, kBlock / g.lanes));
    launch("coupling_backward", kernel, grid, dim3(kBlock), 0, a.stream, a, k, g);
  };
  if (a.d % vec != 0) return run(coupling_backward_kernel<T, 1>, groups_for(a.d, 1, 0));
  const unsigned packets = packet_bit<T>(a.grad_y, a.dtype, 1) | packet_bit<T>(a.kept, a.dtype, 2) |
                           packet_bit<T>(a.scale, a.dtype, 4) |
                           packet_bit<T>(StridedOut{a.grad_x, a.d, 1}, a.dtype, 8) |
                           packet_bit<T>(a.grad_shift, a.dtype, 16) | packet_bit<T>(a.grad_scale, a.dtype, 32);
  run(coupling_backward_kernel<T, vec>, groups_for(a.d, vec, packets));
}

}  // namespace

void coupling_forward(const CouplingForward& a) {
  dispatch_real(a.dtype, [&](auto tag) { run_forward<typename decltype(tag)::type>(a); });
}

void coupling_backward(const CouplingBackward& a) {
  dispatch_real(a.dtype, [&](auto tag) { run_backward<typename decltype(tag)::type>(a); });
}

}  // namespace GF_BACKEND
}  // namespace gf
