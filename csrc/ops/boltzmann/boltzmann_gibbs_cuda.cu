// Gibbs sampling of a general Boltzmann machine on the GPU. A warp owns a chain for all sweeps; its fields and states
// lie in shared memory, and weights are read from the L2 cache. Lanes are the units of a block of 32: all decide at
// once from the fields they have, the first that turns changes the others' fields, and those behind it decide again.
#include "common/philox.h"
#include "ops/boltzmann/boltzmann_quantise.cuh"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int kMostWarps = 8;

struct WarpChain {
  int* fields;
  uint8_t* on;  // a byte a unit
};

// Adds the rows of the units `turned_on` of the 32 from `first`, and subtracts those of `turned_off`.
__device__ __forceinline__ void add_rows(const BoltzmannDevice& p, const WarpChain& chain, const int* order,
                                         int64_t first, unsigned turned_on, unsigned turned_off) {
  const auto row = [&](int i) {
    const int64_t unit = order ? order[first + i] : first + i;
    return p.rows + unit * p.stride;
  };
  for (int64_t j = lane_index(); j < p.f.d; j += kWarpSize) {
    int sum = chain.fields[j];
    for (unsigned bits = turned_on; bits; bits &= bits - 1) sum += row(__ffs(static_cast<int>(bits)) - 1)[j];
    for (unsigned bits = turned_off; bits; bits &= bits - 1) sum -= row(__ffs(static_cast<int>(bits)) - 1)[j];
    chain.fields[j] = sum;
  }
  __syncwarp();
}

// All units of a chain in turn.
__device__ __forceinline__ void sweep(const BoltzmannDevice& p, const WarpChain& chain, const uint8_t* held,
                                      const int* order, uint32_t number, uint32_t step, float beta, float scale,
                                      uint64_t seed) {
  const int lane = lane_index();
  PhiloxWords<uint32_t> random{};
  for (int64_t first = 0; first < p.f.d; first += kWarpSize) {
    const int64_t position = first + lane;
    const bool exists = position < p.f.d;
    const int64_t unit = exists ? (order ? order[position] : position) : 0;
    const int part = static_cast<int>(first / kWarpSize % 4);
    // A lane draws the four words of one quad of 128 units; each unit takes its own from there.
    if (part == 0)
      random = philox<uint32_t>(number, static_cast<uint32_t>(first / 4 + lane), step, kStreamBoltzmann, seed);
    uint32_t word = 0;
    GF_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint32_t got = __shfl_sync(kFullWarp, random.w[i], part * 8 + lane / 4);
      word = lane % 4 == i ? got : word;
    }
    int field = exists ? chain.fields[unit] : 0;
    const bool was = chain.on[unit] != 0;
    bool on = was;
    const bool free = exists && !(held && held[unit]);
    unsigned turned_on = 0, turned_off = 0, settled = 0;  // lanes that have had their turn
    for (;;) {
      if (!(settled >> lane & 1u) && free) on = gibbs_accept<ScalarLane>(field, scale, beta, word);
      const unsigned turns = __ballot_sync(kFullWarp, on != was) & ~settled;
      if (!turns) break;
      const int i = __ffs(static_cast<int>(turns)) - 1;
      const unsigned bit = 1u << i;
      settled = bit | (bit - 1);
      const bool up = __shfl_sync(kFullWarp, static_cast<int>(on), i) != 0;
      const int64_t source = __shfl_sync(kFullWarp, static_cast<int>(unit), i);
      (up ? turned_on : turned_off) |= bit;
      const int weight = exists ? p.rows[source * p.stride + unit] : 0;
      field += up ? weight : -weight;
    }
    if (exists) chain.on[unit] = on;
    __syncwarp();
    if (turned_on | turned_off) add_rows(p, chain, order, first, turned_on, turned_off);
  }
}

template <class E>
__global__ void __launch_bounds__(kMostWarps* kWarpSize, 4)
    boltzmann_gibbs_kernel(BoltzmannDevice p, StatePair<E> pair, bool in_shared) {
  const BoltzmannGibbs& f = p.f;
  const int64_t d = f.d, padded = (d + kWarpSize - 1) / kWarpSize * kWarpSize;
  const int lane = lane_index(), warps = block_threads() / kWarpSize;
  const int64_t number = static_cast<int64_t>(blockIdx.x) * warps + warp_index();
  if (number >= f.n) return;
  WarpChain chain;
  if (in_shared) {
    chain.fields = dynamic_shared<int>() + warp_index() * padded;
    chain.on = reinterpret_cast<uint8_t*>(dynamic_shared<int>() + warps * padded) + warp_index() * padded;
  } else {
    chain.fields = p.chains + number * 2 * p.stride;
    chain.on = reinterpret_cast<uint8_t*>(chain.fields + p.stride);
  }

  const E* in = static_cast<const E*>(f.s) + number * d;
  const bool lost = p.scalars->lost != 0;
  bool wrong = false;
  for (int64_t i = lane; i < d; i += kWarpSize) {
    const bool on = in[i] == pair.high;
    wrong = wrong || (!on && !pair.is_low(in[i]));
    chain.on[i] = on;
    chain.fields[i] = p.base[i];
  }
  const float beta = inverse_temperature(f.temperature[f.temperature_per_chain ? number : 0]);
  const bool bad_state = __any_sync(kFullWarp, wrong) != 0, bad_temperature = beta < 0.0f;
  __syncwarp();
  if (!lost) {
    for (int64_t first = 0; first < d; first += kWarpSize) {
      const unsigned on = __ballot_sync(kFullWarp, first + lane < d && chain.on[first + lane] != 0);
      add_rows(p, chain, nullptr, first, on, 0);
    }
    const int e = p.scalars->exponent;
    const float scale = power_of_two<float>((e < 100 ? e : 100) + (f.spins ? 1 : 0));  // a spin's logit is doubled
    const uint8_t* held = f.clamp ? f.clamp + (f.clamp_per_chain ? number * d : 0) : nullptr;
    for (int64_t t = 0; t < f.n_sweeps; ++t)
      sweep(p, chain, held, f.random_order ? p.order + t * d : nullptr, f.first_chain + static_cast<uint32_t>(number),
            f.first_step + static_cast<uint32_t>(t),
            sweep_beta<ScalarLane>(bad_temperature ? 0.0f : beta, inverse_temperature(f.schedule[t])), scale,
            static_cast<uint64_t>(*f.seed));
  }

  E* out = static_cast<E*>(f.out) + number * d;
  const bool bad = lost || bad_state || bad_temperature;
  for (int64_t i = lane; i < d; i += kWarpSize) out[i] = bad ? pair.nan : chain.on[i] ? pair.high : pair.low;
  const int status = (bad_state ? kBoltzmannBadState : 0) | (bad_temperature ? kBoltzmannBadTemperature : 0);
  if (status && lane == 0) atomicOr(p.status, status);
}

}  // namespace

void boltzmann_gibbs(const BoltzmannGibbs& f) {
#if defined(GF_SIMT)
  const int64_t limit = boltzmann_shared_limit(true);
#else
  const int64_t limit = boltzmann_shared_limit(false);
#endif
  const int64_t bytes = boltzmann_shared_bytes(f.d);
  const bool in_shared = bytes <= limit;
  const BoltzmannDevice p(f, BoltzmannWorkspace(f, true, !in_shared));
  f.weight == DType::f64 ? launch_boltzmann_quantise<double>(p) : launch_boltzmann_quantise<float>(p);
  const int64_t fit = in_shared ? limit / bytes : kMostWarps;
  const int64_t warps = fit < kMostWarps ? fit : kMostWarps;
  const std::size_t shared = static_cast<std::size_t>(in_shared ? warps * bytes : 0);
  const unsigned blocks = static_cast<unsigned>((f.n + warps - 1) / warps);
  dispatch_pair(f.state, f.spins, [&](auto pair) {
    launch("boltzmann_gibbs", boltzmann_gibbs_kernel<decltype(pair.high)>, blocks, static_cast<unsigned>(32 * warps),
           shared, f.stream, p, pair, in_shared);
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
