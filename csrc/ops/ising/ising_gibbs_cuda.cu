// Gibbs sampling on graphs on the GPU. A block owns 32 chains for all sweeps; a word of bits has their states of one
// unit, in shared memory where the graph is small enough. A warp draws four units, its lanes are the chains.
#include "common/launch.cuh"
#include "common/philox.h"
#include "common/reduce.cuh"
#include "ops/ising/ising.h"
#include "ops/ising/ising_states.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;

struct DeviceGraph {
  IsingGibbs f;
  __device__ int* faults() const { return f.workspace; }
  __device__ int* colours() const { return f.workspace + 16; }
  __device__ float beta_of(int64_t sweep, int64_t chain) const {
    return f.beta[(f.beta_sweeps > 1 ? sweep : 0) * f.beta_chains + (f.beta_chains > 1 ? chain : 0)];
  }
};

__global__ void ising_clear_kernel(DeviceGraph g) {
  for (int64_t i = grid_thread(); i < g.f.units; i += grid_threads()) g.colours()[i] = -1;
  if (grid_thread() == 0) *g.faults() = 0;
}

// Writes the colours of units.
__global__ void ising_colour_kernel(DeviceGraph g) {
  const IsingGibbs& f = g.f;
  const int64_t colours = f.n_colours;
  bool bad = f.offsets[0] != 0 || f.offsets[colours] != f.units;
  for (int64_t c = grid_thread(); c < colours; c += grid_threads()) bad = bad || f.offsets[c] > f.offsets[c + 1];
  for (int64_t p = grid_thread(); p < f.units; p += grid_threads()) {
    int64_t low = 0, high = colours;  // offsets[low] <= p < offsets[high]
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (f.offsets[middle] <= p ? low : high) = middle;
    }
    const int64_t i = f.order[p];
    if (i < 0 || i >= f.units)
      bad = true;
    else
      g.colours()[i] = static_cast<int>(low);
  }
  if (bad) atomicOr(g.faults(), kIsingBadColours);
}

// The place of edge (row, column), or -1.
__device__ int64_t find_edge(const IsingGibbs& f, int64_t row, int64_t column) {
  int64_t low = f.row_ptr[row], high = f.row_ptr[row + 1];
  if (low < 0 || high > f.edges) return -1;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    const int64_t at = f.columns[middle];
    if (at == column) return middle;
    if (at < column)
      low = middle + 1;
    else
      high = middle;
  }
  return -1;
}

__global__ void ising_check_kernel(DeviceGraph g) {
  const IsingGibbs& f = g.f;
  int faults = f.row_ptr[0] != 0 || f.row_ptr[f.units] != f.edges ? kIsingBadGraph : 0;
  for (int64_t i = grid_thread(); i < f.units; i += grid_threads()) {
    if (g.colours()[i] < 0) faults |= kIsingBadColours;
    const int64_t begin = f.row_ptr[i], end = f.row_ptr[i + 1];
    if (begin < 0 || begin > end || end > f.edges) {
      faults |= kIsingBadGraph;
      continue;
    }
    float sum = f.bias[i] < 0 ? -f.bias[i] : f.bias[i];
    int64_t last = -1;
    for (int64_t k = begin; k < end; ++k) {
      const int64_t j = f.columns[k];
      if (j <= last || j >= f.units) {
        faults |= kIsingBadGraph;
        break;
      }
      last = j;
      if (g.colours()[j] == g.colours()[i]) faults |= kIsingBadColours;
      const float w = f.weights[k];
      sum = rounded_add(sum, w < 0 ? -w : w);
      if (f.validate) {
        const int64_t like = find_edge(f, j, i);
        if (like < 0 || f.weights[like] != w) faults |= kIsingAsymmetric;
      }
    }
    if (magnitude_bits(sum) >= 0x7f800000u) faults |= kIsingNotFinite;
  }
  if (faults) atomicOr(g.faults(), faults);
}

__global__ void ising_status_kernel(DeviceGraph g) {
  if (grid_thread() == 0) *g.f.status = *g.faults();
}

template <class E>
__global__ void __launch_bounds__(kThreads, 4) ising_kernel(DeviceGraph g, SpinCode<E> code, bool in_shared) {
  const IsingGibbs& f = g.f;
  GF_SHARED(float, beta, [kWarpSize]);
  GF_SHARED(int, bad, [kWarpSize]);
  const int lane = lane_index(), thread = block_thread();
  const int64_t units = f.units, first = static_cast<int64_t>(blockIdx.x) * kWarpSize, chain = first + lane;
  const bool exists = chain < f.n;
  unsigned* states = in_shared ? dynamic_shared<unsigned>()
                               : reinterpret_cast<unsigned*>(f.workspace + 16 + units + blockIdx.x * units);
  const E* in = static_cast<const E*>(f.s) + chain * units;
  E* out = static_cast<E*>(f.out) + chain * units;
  // The chains' own faults come later, by atomics of other blocks too.
  const int faults = *g.faults() & ~(kIsingNotStates | kIsingBadBeta);
  if (faults) {
    for (int64_t i = warp_index(); i < units; i += kWarps)
      if (exists) out[i] = code.nan;
    return;
  }
  if (thread < kWarpSize) bad[thread] = 0;
  __syncthreads();
  for (int64_t i = warp_index(); i < units; i += kWarps) {
    const E x = exists ? in[i] : code.up;
    const bool on = x == code.up;
    if (!on && static_cast<E>(x & static_cast<E>(~code.ignored)) != code.down) atomicOr(&bad[lane], kIsingNotStates);
    const unsigned bits = __ballot_sync(kFullWarp, on);
    if (lane == 0) states[i] = bits;
  }
  if (exists)
    for (int64_t s = warp_index(); s < f.beta_sweeps; s += kWarps)
      if (!is_temperature(g.beta_of(s, chain))) atomicOr(&bad[lane], kIsingBadBeta);
  __syncthreads();
  if (thread < kWarpSize && bad[thread]) atomicOr(g.faults(), bad[thread]);

  const uint64_t seed = static_cast<uint64_t>(*f.seed);
  const uint32_t row = f.first_chain + static_cast<uint32_t>(chain);
  for (int64_t s = 0; s < f.n_sweeps; ++s) {
    if (thread < kWarpSize) beta[thread] = exists && !bad[thread] ? g.beta_of(s, chain) : 0.0f;
    __syncthreads();
    const float b = beta[lane];
    for (int64_t colour = 0; colour < f.n_colours; ++colour) {
      const int64_t begin = f.offsets[colour], end = f.offsets[colour + 1];
      for (int64_t block = begin / 4 + warp_index(); 4 * block < end; block += kWarps) {
        const PhiloxWords<uint32_t> random = philox<uint32_t>(
            row, static_cast<uint32_t>(block), f.first_step + static_cast<uint32_t>(s), kStreamIsing, seed);
        GF_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int64_t p = 4 * block + i;
          if (p < begin || p >= end) continue;
          const int64_t unit = f.order[p];
          float field = f.bias[unit];
          for (int64_t e = f.row_ptr[unit]; e < f.row_ptr[unit + 1]; ++e) {
            const float w = f.weights[e];
            const bool on = states[f.columns[e]] >> lane & 1u;
            field = rounded_add(field, on ? w : f.spin ? -w : 0.0f);
          }
          if (f.spin) field = rounded_mul(field, 2.0f);
          const float z = rounded_mul(field, b);
          const float t = exp_negative<ScalarLane>(0.0f > z ? -z : z);
          bool on = gibbs_accept_logit<ScalarLane>(z, t, random.w[i]);
          if (f.clamp && exists && f.clamp[(f.clamp_per_chain ? chain * units : 0) + unit])
            on = states[unit] >> lane & 1u;
          const unsigned bits = __ballot_sync(kFullWarp, on);
          if (lane == 0) states[unit] = bits;
        }
      }
      __syncthreads();
    }
  }
  for (int64_t i = warp_index(); i < units; i += kWarps)
    if (exists) out[i] = bad[lane] ? code.nan : (states[i] >> lane & 1u) ? code.up : code.down;
}

}  // namespace

void ising_gibbs(const IsingGibbs& f) {
  if (f.n == 0 || f.units == 0) return;
  const DeviceGraph graph{f};
  const unsigned blocks = blocks_for(f.units, kThreads);
  launch("ising_gibbs", ising_clear_kernel, blocks, kThreads, 0, f.stream, graph);
  launch("ising_gibbs", ising_colour_kernel, blocks, kThreads, 0, f.stream, graph);
  launch("ising_gibbs", ising_check_kernel, blocks, kThreads, 0, f.stream, graph);
  const bool in_shared = 4 * f.units <= kIsingShared;
  dispatch_spins(f.state, f.spin, [&](auto code) {
    launch("ising_gibbs", ising_kernel<decltype(code.up)>, static_cast<unsigned>((f.n + kWarpSize - 1) / kWarpSize),
           kThreads, in_shared ? static_cast<std::size_t>(4 * f.units) : 0, f.stream, graph, code, in_shared);
  });
  if (f.status) launch("ising_gibbs", ising_status_kernel, 1, kWarpSize, 0, f.stream, graph);
}

}  // namespace GF_BACKEND
}  // namespace gf
