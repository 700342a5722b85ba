// Affine coupling on CUDA. A group of lanes owns a row: the smallest power of two that covers it, up to a warp, and a
// whole block where rows are wide. Where the width allows it, a lane moves 16 bytes at a time.
#include "common/launch.cuh"
#include "common/reduce.cuh"
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

template <class S, int kVec>
struct alignas(sizeof(S) * kVec) Packet {
  S v[kVec];
};

// Numbers j ... j + kVec - 1 of row i. Which thread takes which numbers does not depend on how they are read.
template <int kVec, class S, class T>
__device__ __forceinline__ void load_row(const Strided& m, bool packet, int64_t i, int64_t j, T (&out)[kVec]) {
  const S* p = static_cast<const S*>(m.data) + i * m.row;
  if (kVec > 1 && packet) {
    const Packet<S, kVec> x = *reinterpret_cast<const Packet<S, kVec>*>(p + j);
    GF_UNROLL
    for (int e = 0; e < kVec; ++e) out[e] = to_real(x.v[e]);
  } else {
    GF_UNROLL
    for (int e = 0; e < kVec; ++e) out[e] = to_real(p[(j + e) * m.col]);
  }
}

template <int kVec, class S, class T>
__device__ __forceinline__ void store_row(const StridedOut& m, bool packet, int64_t i, int64_t j, const T (&in)[kVec]) {
  S* p = static_cast<S*>(m.data) + i * m.row;
  if (kVec > 1 && packet) {
    Packet<S, kVec> x;
    GF_UNROLL
    for (int e = 0; e < kVec; ++e) x.v[e] = from_real<S>(in[e]);
    *reinterpret_cast<Packet<S, kVec>*>(p + j) = x;
  } else {
    GF_UNROLL
    for (int e = 0; e < kVec; ++e) p[(j + e) * m.col] = from_real<S>(in[e]);
  }
}

// Adds a value over the lanes of a group; all threads of the block take part.
template <class T>
__device__ __forceinline__ T group_sum(T value, int lanes) {
  if (lanes > kWarpSize) return block_sum(value);
  for (int offset = lanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullWarp, value, offset);
  return value;
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

template <ScaleMap kMap, bool kInverse, int kVec, class S>
__device__ __forceinline__ void forward_rows(const CouplingForward& a, const ScaleConstants<compute_t<S>>& k,
                                             Groups g) {
  using T = compute_t<S>;
  T sum = T(0);
  for_rows(
      a.n, g,
      [&](int64_t i, int lane) {
        GF_ROLLED  // unrolled, it spills
            for (int64_t j = static_cast<int64_t>(lane) * kVec; j < a.d; j += static_cast<int64_t>(g.lanes) * kVec) {
          T x[kVec], shift[kVec], raw[kVec];
          load_row<kVec, S>(a.x, g.packets & 1u, i, j, x);
          load_row<kVec, S>(a.shift, g.packets & 2u, i, j, shift);
          load_row<kVec, S>(a.scale, g.packets & 4u, i, j, raw);
          GF_UNROLL
          for (int e = 0; e < kVec; ++e) {
            const Scale<T> f = coupling_scale<kMap>(raw[e], k);
            x[e] = coupling_apply<kInverse>(x[e], shift[e], f.s);
            sum += f.log_s;
          }
          store_row<kVec, S>(StridedOut{a.y, a.d, 1}, g.packets & 8u, i, j, x);
        }
      },
      [&](int64_t i, int lane) {
        const T total = group_sum(sum, g.lanes);
        if (lane == 0 && i < a.n) static_cast<T*>(a.log_det)[i] = kInverse ? -total : total;
        sum = T(0);
      });
}

template <ScaleMap kMap, bool kInverse, int kVec, class S>
__device__ __forceinline__ void backward_rows(const CouplingBackward& a, const ScaleConstants<compute_t<S>>& k,
                                              Groups g) {
  using T = compute_t<S>;
  for_rows(
      a.n, g,
      [&](int64_t i, int lane) {
        const T l = static_cast<const T*>(a.grad_log_det.data)[i * a.grad_log_det.row];
        GF_ROLLED  // unrolled, it spills
            for (int64_t j = static_cast<int64_t>(lane) * kVec; j < a.d; j += static_cast<int64_t>(g.lanes) * kVec) {
          T grad[kVec], x[kVec], raw[kVec], shift[kVec];
          load_row<kVec, S>(a.grad_y, g.packets & 1u, i, j, grad);
          load_row<kVec, S>(a.kept, g.packets & 2u, i, j, x);
          load_row<kVec, S>(a.scale, g.packets & 4u, i, j, raw);
          GF_UNROLL
          for (int e = 0; e < kVec; ++e) {
            const CouplingAdjoint<T> adjoint =
                coupling_adjoint<kInverse>(grad[e], l, x[e], coupling_scale<kMap>(raw[e], k));
            grad[e] = adjoint.x;
            shift[e] = adjoint.shift;
            raw[e] = adjoint.raw;
          }
          store_row<kVec, S>(StridedOut{a.grad_x, a.d, 1}, g.packets & 8u, i, j, grad);
          if (a.grad_shift.data != nullptr) store_row<kVec, S>(a.grad_shift, g.packets & 16u, i, j, shift);
          store_row<kVec, S>(a.grad_scale, g.packets & 32u, i, j, raw);
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

template <class S, int kVec, bool kInverse>
__global__ void __launch_bounds__(kBlock)
    coupling_forward_kernel(CouplingForward a, ScaleConstants<compute_t<S>> k, Groups g) {
#define GF_CALL(map) forward_rows<map, kInverse, kVec, S>(a, k, g)
  GF_EACH_MAP(GF_CALL)
#undef GF_CALL
}

template <class S, int kVec, bool kInverse>
__global__ void __launch_bounds__(kBlock)
    coupling_backward_kernel(CouplingBackward a, ScaleConstants<compute_t<S>> k, Groups g){
#define GF_CALL(map) backward_rows<map, kInverse, kVec, S>(a, k, g)
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

// `bit` if packets of `vec` numbers of S can be read or written.
template <class S, class M>
unsigned packet_bit(const M& m, int vec, unsigned bit) {
  const bool adjacent = m.col == 1 && m.row % vec == 0;
  return adjacent && reinterpret_cast<std::uintptr_t>(m.data) % (vec * sizeof(S)) == 0 ? bit : 0;
}

template <class S, bool kInverse>
void run_forward(const CouplingForward& a) {
  constexpr int vec = 16 / sizeof(S);
  const auto k = ScaleConstants<compute_t<S>>::from(a.spec);
  const auto run = [&](auto kernel, const Groups& g) {
    const dim3 grid(blocks_for(a.n, kBlock / g.lanes));
    launch("coupling_forward", kernel, grid, dim3(kBlock), 0, a.stream, a, k, g);
  };
  if (a.d % vec != 0) return run(coupling_forward_kernel<S, 1, kInverse>, groups_for(a.d, 1, 0));
  const unsigned packets = packet_bit<S>(a.x, vec, 1) | packet_bit<S>(a.shift, vec, 2) |
                           packet_bit<S>(a.scale, vec, 4) | packet_bit<S>(StridedOut{a.y, a.d, 1}, vec, 8);
  run(coupling_forward_kernel<S, vec, kInverse>, groups_for(a.d, vec, packets));
}

template <class S, bool kInverse>
void run_backward(const CouplingBackward& a) {
  constexpr int vec = 16 / sizeof(S);
  const auto k = ScaleConstants<compute_t<S>>::from(a.spec);
  const auto run = [&](auto kernel, const Groups& g) {
    const dim3 grid(blocks_for(a.n, kBlock / g.lanes));
    launch("coupling_backward", kernel, grid, dim3(kBlock), 0, a.stream, a, k, g);
  };
  if (a.d % vec != 0) return run(coupling_backward_kernel<S, 1, kInverse>, groups_for(a.d, 1, 0));
  const unsigned packets = packet_bit<S>(a.grad_y, vec, 1) | packet_bit<S>(a.kept, vec, 2) |
                           packet_bit<S>(a.scale, vec, 4) | packet_bit<S>(StridedOut{a.grad_x, a.d, 1}, vec, 8) |
                           packet_bit<S>(a.grad_shift, vec, 16) | packet_bit<S>(a.grad_scale, vec, 32);
  run(coupling_backward_kernel<S, vec, kInverse>, groups_for(a.d, vec, packets));
}

}  // namespace

void coupling_forward(const CouplingForward& a) {
  dispatch_float(a.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    a.inverse ? run_forward<S, true>(a) : run_forward<S, false>(a);
  });
}

void coupling_backward(const CouplingBackward& a) {
  dispatch_float(a.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    a.inverse ? run_backward<S, true>(a) : run_backward<S, false>(a);
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
