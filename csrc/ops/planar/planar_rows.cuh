// How rows, weights and sums of a planar flow lie in the registers and the shared memory of a block.
#pragma once

#include "common/chunks.h"
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "common/rows.cuh"
#include "ops/planar/planar.h"
#include "ops/planar/planar_math.h"

namespace gf {
inline namespace GF_BACKEND {
namespace planar {

constexpr int kBlock = 128, kWarps = kBlock / kWarpSize;

// The order in which a pass takes the layers.
struct Order {
  int64_t first, step;
  __device__ __forceinline__ int64_t layer(int64_t i) const { return first + i * step; }
};

// How rows lie in registers: `lanes` threads a row, each with kPer numbers in packets of kVec that are dealt out in
// turn.
struct Shape {
  int lanes, log_lanes;
  int width;  // lanes * kPer >= d; the rest are zeros
  int tile;   // layers staged at a time
};

template <class T, int kPer>
struct Rows {
  static constexpr int kVec = kPer * sizeof(T) < 16 ? kPer : static_cast<int>(16 / sizeof(T));

  // The component that number e of a lane is.
  static __device__ __forceinline__ int component(int e, int lane, int lanes) {
    return (e / kVec * lanes + lane) * kVec + e % kVec;
  }
  static __device__ __forceinline__ void load(const void* rows, DType dtype, int64_t row, int64_t d, bool active,
                                              int lane, int lanes, T (&out)[kPer]) {
    GF_UNROLL
    for (int e = 0; e < kPer; ++e) {
      const int c = component(e, lane, lanes);
      out[e] = active && c < d ? load_number<T>(rows, dtype, row * d + c) : T(0);
    }
  }
  static __device__ __forceinline__ void store(void* rows, DType dtype, int64_t row, int64_t d, bool active, int lane,
                                               int lanes, const T (&in)[kPer]) {
    GF_UNROLL
    for (int e = 0; e < kPer; ++e) {
      const int c = component(e, lane, lanes);
      if (active && c < d) store_number<T>(rows, dtype, row * d + c, in[e]);
    }
  }
  // f(e, weight of the lane's number e), of one layer in shared memory.
  template <class F>
  static __device__ __forceinline__ void each(const T* weights, int lane, int lanes, F&& f) {
    GF_UNROLL
    for (int e = 0; e < kPer; e += kVec) {
      const Packet<T, kVec> p = *reinterpret_cast<const Packet<T, kVec>*>(weights + component(e, lane, lanes));
      GF_UNROLL
      for (int i = 0; i < kVec; ++i) f(e + i, p.v[i]);
    }
  }
};

// The weights of a tile of layers in shared memory: w and u [tile, width], w.u and b [tile].
template <class T>
struct Tile {
  T *w, *u, *wu, *b;

  __device__ __forceinline__ Tile(T* memory, const Shape& s)
      : w(memory), u(w + s.tile * s.width), wu(u + s.tile * s.width), b(wu + s.tile) {}

  static std::size_t bytes(const Shape& s) { return static_cast<std::size_t>(s.tile) * (2 * s.width + 2) * sizeof(T); }

  // Layers i0 ... of the order; all threads of the block take part.
  __device__ void load(const void* w_in, const void* u_in, const void* b_in, DType dtype, const PlanarSizes& size,
                       const Shape& s, Order order, int64_t i0, bool inverse) const {
    __syncthreads();  // nobody still reads the tile before
    const int layers = static_cast<int>(size.k - i0 < s.tile ? size.k - i0 : s.tile);
    for (int j = block_thread(); j < layers * s.width; j += kBlock) {
      const int c = j % s.width;
      const int64_t at = order.layer(i0 + j / s.width) * size.d + c;
      w[j] = c < size.d ? load_number<T>(w_in, dtype, at) : T(0);
      u[j] = c < size.d ? load_number<T>(u_in, dtype, at) : T(0);
    }
    __syncthreads();
    for (int j = warp_index(); j < layers; j += kWarps) {
      T sums[2] = {T(0), T(0)};
      for (int c = lane_index(); c < s.width; c += kWarpSize) {
        const T product = w[j * s.width + c] * u[j * s.width + c];
        sums[0] += product;
        sums[1] += abs(product);
      }
      warp_sum(sums);
      if (lane_index() == 0) {
        wu[j] = inverse ? planar_invertible_wu(sums[0], sums[1], storage_epsilon<T>(dtype)) : sums[0];
        b[j] = load_number<T>(b_in, dtype, order.layer(i0 + j));
      }
    }
    __syncthreads();
  }
};

template <class T>
struct Step {
  T h, log_q;
};

// One layer of the forward or inverse, given w.z + b; `a` becomes the argument of tanh.
template <class T>
__device__ __forceinline__ Step<T> planar_step(T& a, T wu, bool inverse) {
  if (inverse) a = planar_solve(a, wu);
  const PlanarLayer<T> f = planar_layer(a, wu);
  return {inverse ? -f.h : f.h, log(abs(f.q))};
}

// Where the sums over the rows of a chunk go: grad_w [k, d], grad_u [k, d], grad_b [k], c [k].
template <class T>
struct Part {
  T *w, *u, *b, *c;

  __device__ __forceinline__ Part(const PlanarBackward& f, int64_t chunk) {
    const int64_t kd = f.size.k * f.size.d;
    w = static_cast<T*>(f.workspace) + chunk * planar_sums(f.size);
    u = w + kd;
    b = u + kd;
    c = b + f.size.k;
  }
  __device__ __forceinline__ void clear(const PlanarSizes& size) const {
    for (int64_t i = block_thread(); i < planar_sums(size); i += block_threads()) w[i] = T(0);
    __syncthreads();
  }
};

}  // namespace planar
}  // namespace GF_BACKEND
}  // namespace gf
