// Checks the couplings of a Boltzmann machine on the GPU and rounds them to fixed point (gibbs.h says how). Maxima and
// sums of integers only: atomics may come in any order.
#pragma once

#include "common/gibbs.h"
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "ops/boltzmann/boltzmann.h"
#include "ops/boltzmann/boltzmann_states.h"

namespace gf {
inline namespace GF_BACKEND {

struct BoltzmannScalars {
  unsigned long long largest_weight, largest_bias;  // magnitude bits of doubles
  unsigned long long largest_sum;
  int exponent;
  int lost;  // status bits: no states can be drawn
};

struct BoltzmannDevice {
  BoltzmannGibbs f;
  int64_t stride;
  int *rows, *base, *order, *chains;
  BoltzmannScalars* scalars;
  int* status;

  BoltzmannDevice(const BoltzmannGibbs& args, const BoltzmannWorkspace& at)
      : f(args),
        stride(at.stride),
        rows(f.workspace + at.rows),
        base(f.workspace + at.base),
        order(f.workspace + at.order),
        chains(f.workspace + at.chains),
        scalars(reinterpret_cast<BoltzmannScalars*>(f.workspace + at.scalars)),
        status(f.status ? f.status : f.workspace + at.scalars + 15) {}

  __device__ unsigned long long largest() const {
    const unsigned long long w = scalars->largest_weight, b = scalars->largest_bias;
    return w > b ? w : b;
  }
  __device__ FixedPointScale bound_scale() const { return FixedPointScale(largest(), f.d); }
};

__global__ void boltzmann_clear_kernel(BoltzmannDevice p) {
  *p.scalars = BoltzmannScalars{0, 0, 0, 0, 0};
  *p.status = 0;
}

constexpr int kTile = 32, kTileRows = 8;

// A block looks at one tile of couplings and at its mirror image.
template <class T>
__global__ void boltzmann_check_kernel(BoltzmannDevice p) {
  GF_SHARED(T, mirror, [kTile][kTile + 1]);
  const T* J = static_cast<const T*>(p.f.J);
  const T* bias = static_cast<const T*>(p.f.bias);
  const int64_t d = p.f.d, x = threadIdx.x % kTile, y = threadIdx.x / kTile;
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * kTile, column0 = static_cast<int64_t>(blockIdx.x) * kTile;
  const auto bits = [](T v) { return static_cast<unsigned long long>(magnitude_bits(static_cast<double>(v))); };
  for (int64_t r = y; r < kTile; r += kTileRows) {
    const int64_t i = column0 + r, j = row0 + x;
    mirror[r][x] = i < d && j < d ? J[i * d + j] : T(0);
  }
  __syncthreads();
  unsigned long long m[2] = {0, 0};
  int found = 0;
  for (int64_t r = y; r < kTile; r += kTileRows) {
    const int64_t i = row0 + r, j = column0 + x;
    if (i >= d || j >= d) continue;
    const T v = J[i * d + j];
    m[0] = bits(v) > m[0] ? bits(v) : m[0];
    if (v != mirror[x][r]) found |= kBoltzmannAsymmetric;
    if (i == j && v != 0) found |= kBoltzmannDiagonal;
  }
  if (blockIdx.y == 0 && y == 0 && column0 + x < d) m[1] = bits(bias[column0 + x]);
  block_max(m);
  if (threadIdx.x == 0) {
    atomicMax(&p.scalars->largest_weight, m[0]);
    atomicMax(&p.scalars->largest_bias, m[1]);
  }
  if (found) atomicOr(&p.scalars->lost, found);
}

// A warp sums the bounds of a unit's weights and its bias.
template <class T>
__global__ void boltzmann_bounds_kernel(BoltzmannDevice p) {
  if (p.largest() >= kInfinityBits) return;
  const T unit = p.bound_scale().template unit<T>();
  const int64_t d = p.f.d, warps = grid_threads() / kWarpSize;
  for (int64_t i = grid_thread() / kWarpSize; i < d; i += warps) {
    int sum = 0;
    for (int64_t j = lane_index(); j < d; j += kWarpSize)
      sum += fixed_point_bound(static_cast<const T*>(p.f.J)[i * d + j], unit);
    sum = warp_sum(sum) + fixed_point_bound(static_cast<const T*>(p.f.bias)[i], unit);
    if (lane_index() == 0) atomicMax(&p.scalars->largest_sum, static_cast<unsigned long long>(sum));
  }
}

__global__ void boltzmann_exponent_kernel(BoltzmannDevice p) {
  BoltzmannScalars& s = *p.scalars;
  int lost = s.lost;
  if (p.largest() >= kInfinityBits)
    lost = kBoltzmannNotFinite;
  else
    s.exponent = p.bound_scale().fixed_point_exponent(static_cast<int64_t>(s.largest_sum), s.largest_weight);
  for (int64_t t = 0; t < p.f.n_sweeps; ++t)
    if (inverse_temperature(p.f.schedule[t]) < 0.0f) lost |= kBoltzmannBadTemperature;
  s.lost = lost;
  if (lost) atomicOr(p.status, lost);
}

// A block rounds a row at a time.
template <class T>
__global__ void boltzmann_round_kernel(BoltzmannDevice p) {
  if (p.scalars->lost) return;
  const T inverse = power_of_two<T>(-p.scalars->exponent);
  const int64_t d = p.f.d;
  for (int64_t i = blockIdx.x; i < d; i += gridDim.x) {
    int sum = 0;
    for (int64_t j = threadIdx.x; j < d; j += blockDim.x) {
      const int q = round_even(static_cast<const T*>(p.f.J)[i * d + j] * inverse);
      sum += q;
      p.rows[i * p.stride + j] = p.f.spins ? 2 * q : q;  // turning a spin moves it by 2
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) p.base[i] = round_even(static_cast<const T*>(p.f.bias)[i] * inverse) - (p.f.spins ? sum : 0);
  }
}

// A thread shuffles the order of one sweep (boltzmann_sweep.h).
__global__ void boltzmann_order_kernel(BoltzmannDevice p) {
  const int64_t d = p.f.d;
  const uint64_t seed = static_cast<uint64_t>(*p.f.seed);
  for (int64_t t = grid_thread(); t < p.f.n_sweeps; t += grid_threads()) {
    int* order = p.order + t * d;
    for (int64_t i = 0; i < d; ++i) order[i] = static_cast<int>(i);
    PhiloxWords<uint32_t> random{};
    for (int64_t i = d - 1; i > 0; --i) {
      if (i == d - 1 || i % 4 == 3)
        random = philox<uint32_t>(0, static_cast<uint32_t>(i / 4), p.f.first_step + static_cast<uint32_t>(t),
                                  kStreamBoltzmannOrder, seed);
      const uint32_t word = i % 4 == 0   ? random.w[0]
                            : i % 4 == 1 ? random.w[1]
                            : i % 4 == 2 ? random.w[2]
                                         : random.w[3];
      const int64_t j = static_cast<int64_t>(static_cast<uint64_t>(word) * static_cast<uint64_t>(i + 1) >> 32);
      const int kept = order[i];
      order[i] = order[j];
      order[j] = kept;
    }
  }
}

template <class T>
inline void launch_boltzmann_quantise(const BoltzmannDevice& p) {
  const Stream stream = p.f.stream;
  const unsigned tiles = static_cast<unsigned>((p.f.d + kTile - 1) / kTile);
  launch("boltzmann_clear", boltzmann_clear_kernel, 1, 1, 0, stream, p);
  launch("boltzmann_check", boltzmann_check_kernel<T>, dim3(tiles, tiles), kTile * kTileRows, 0, stream, p);
  launch("boltzmann_bounds", boltzmann_bounds_kernel<T>, blocks_for(p.f.d * kWarpSize, 256, 512), 256, 0, stream, p);
  launch("boltzmann_exponent", boltzmann_exponent_kernel, 1, 1, 0, stream, p);
  launch("boltzmann_round", boltzmann_round_kernel<T>, blocks_for(p.f.d, 1, 1024), 256, 0, stream, p);
  if (p.f.random_order)
    launch("boltzmann_order", boltzmann_order_kernel, blocks_for(p.f.n_sweeps, 32, 1024), 32, 0, stream, p);
}

}  // namespace GF_BACKEND
}  // namespace gf
