// Gibbs sampling of a general Boltzmann machine on the CPU: weights are rounded (boltzmann_quantise.h), and each task
// runs its chains through all sweeps (boltzmann_sweep.h).
#include <cstdint>

#include "common/parallel.h"
#include "ops/boltzmann/boltzmann_quantise.h"
#include "ops/boltzmann/boltzmann_sweep.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

// Bits of `count` <= 32 states; `bad` is set where one is neither of the two.
template <class E>
GF_HD uint32_t pack_word(const E* x, int count, const StatePair<E>& pair, bool& bad) {
  uint32_t bits = 0;
  if constexpr (sizeof(E) == 4) {
    if (count == kUnitBlock) {
      WordLanes wrong{};
      for (int i = 0; i < kUnitBlock; i += kLanes) {
        const WordLanes value = load_lanes<WordLanes>(x + i);
        const IntLanes on = value == pair.high;
        bits |= lane_bits(on) << (i % 32);
        wrong |= ((value & pair.clear) ^ pair.low) & ~(WordLanes)on;
      }
      bad |= lane_bits(wrong != 0) != 0;
      return bits;
    }
  }
  for (int i = 0; i < count; ++i) {
    const bool on = x[i] == pair.high;
    bits |= static_cast<uint32_t>(on) << i;
    bad |= !on && !pair.is_low(x[i]);
  }
  return bits;
}

template <class E>
GF_HD void unpack_word(E* x, int count, uint32_t bits, E low, E high) {
  if constexpr (sizeof(E) == 4) {
    if (count == kUnitBlock) {
      for (int i = 0; i < kUnitBlock; i += kLanes) {
        const WordLanes bit = ((WordLanes{} + bits) >> (lane_numbers() + static_cast<uint32_t>(i))) & 1u;
        store_lanes(x + i, low ^ (-bit & (low ^ high)));
      }
      return;
    }
  }
  for (int i = 0; i < count; ++i) x[i] = (bits >> i & 1u) ? high : low;
}

GF_HD int word_width(int64_t d, int64_t word) {
  const int64_t left = d - word * kUnitBlock;
  return static_cast<int>(left < kUnitBlock ? left : kUnitBlock);
}

// The bits of a clamp's row, in lane c of the words of a group.
GF_HD void pack_clamp(const uint8_t* mask, int64_t d, uint32_t* words) {
  for (int64_t w = 0; w * kUnitBlock < d; ++w) {
    uint32_t bits = 0;
    for (int i = 0; i < word_width(d, w); ++i) bits |= static_cast<uint32_t>(mask[w * kUnitBlock + i] != 0) << i;
    words[w * kLanes] = bits;
  }
}

// What all tasks share.
struct Machine {
  const BoltzmannGibbs& f;
  const BoltzmannWorkspace& at;
  int exponent;
  bool lost;  // no states can be drawn
};

template <class E>
void fill(const BoltzmannGibbs& f, int64_t begin, int64_t end, E value) {
  E* out = static_cast<E*>(f.out);
  for (int64_t i = begin * f.d; i < end * f.d; ++i) out[i] = value;
}

// All sweeps of the chains [begin, end); returns status bits.
template <class E>
int32_t run_chains(const Machine& m, const StatePair<E>& pair, int64_t begin, int64_t end) {
  const BoltzmannGibbs& f = m.f;
  const int64_t d = f.d, words = (d + kUnitBlock - 1) / kUnitBlock, n = end - begin;
  const int64_t groups = (n + kLanes - 1) / kLanes, held_groups = !f.clamp ? 0 : f.clamp_per_chain ? groups : 1;
  Scratch<int32_t> fields(groups * kLanes * m.at.stride), order(d);
  Scratch<uint32_t> state(groups * words * kLanes), held(held_groups * words * kLanes);
  Scratch<uint32_t> shuffling(f.random_order ? d + 4 * kLanes : 0);
  Scratch<float> betas(groups * kLanes);
  Scratch<uint8_t> bad(groups * kLanes);
  Scratch<Turn> list(groups * kLanes + 1);
  Turns turns{list.get()};

  int32_t status = 0;
  for (int64_t c = 0; c < groups * kLanes; ++c) {
    const bool exists = c < n;
    const int64_t at = c / kLanes * words * kLanes + c % kLanes;
    bool wrong = false;
    for (int64_t w = 0; w < words; ++w) {
      const E* x = static_cast<const E*>(f.s) + (begin + c) * d + w * kUnitBlock;
      state.get()[at + w * kLanes] = exists ? pack_word(x, word_width(d, w), pair, wrong) : 0;
      if (f.clamp && f.clamp_per_chain && !exists) held.get()[at + w * kLanes] = 0;
    }
    if (f.clamp && f.clamp_per_chain && exists) pack_clamp(f.clamp + (begin + c) * d, d, held.get() + at);
    if (f.clamp && !f.clamp_per_chain && c < kLanes) pack_clamp(f.clamp, d, held.get() + c);
    const float beta = exists ? inverse_temperature(f.temperature[f.temperature_per_chain ? begin + c : 0]) : 0.0f;
    status |= (wrong ? kBoltzmannBadState : 0) | (beta < 0.0f ? kBoltzmannBadTemperature : 0);
    betas.get()[c] = beta < 0.0f ? 0.0f : beta;
    bad.get()[c] = wrong || beta < 0.0f;
    memcpy(fields.get() + c * m.at.stride, f.workspace + m.at.base, m.at.stride * sizeof(int32_t));
  }
  if (m.lost) {
    fill(f, begin, end, pair.nan);
    return status;
  }

  BoltzmannChains chains{};
  chains.d = d;
  chains.stride = m.at.stride;
  chains.words = words;
  chains.groups = groups;
  chains.rows = f.workspace + m.at.rows;
  chains.fields = fields.get();
  chains.state = state.get();
  chains.held = f.clamp ? held.get() : nullptr;
  chains.held_stride = f.clamp_per_chain ? words * kLanes : 0;
  chains.beta = betas.get();
  // A spin's logit is twice its field over the temperature.
  chains.scale = power_of_two<float>((m.exponent < 100 ? m.exponent : 100) + (f.spins ? 1 : 0));
  chains.seed = static_cast<uint64_t>(*f.seed);
  chains.first_chain = f.first_chain + static_cast<uint32_t>(begin);
  for (int c = 0; c < kLanes; ++c) chains.exist[c] = (groups - 1) * kLanes + c < n ? ~0u : 0u;
  for (int64_t i = 0; i < d; ++i) order.get()[i] = static_cast<int32_t>(i);
  start_fields(chains, order.get(), turns);
  for (int64_t t = 0; t < f.n_sweeps; ++t) {
    const uint32_t step = f.first_step + static_cast<uint32_t>(t);
    if (f.random_order) shuffle_order(d, step, chains.seed, shuffling.get(), order.get());
    sweep(chains, order.get(), !f.random_order, step, inverse_temperature(f.schedule[t]), turns);
  }

  for (int64_t c = 0; c < n; ++c) {
    const bool lost = bad.get()[c] != 0;
    const uint32_t* in = state.get() + c / kLanes * words * kLanes + c % kLanes;
    for (int64_t w = 0; w < words; ++w)
      unpack_word(static_cast<E*>(f.out) + (begin + c) * d + w * kUnitBlock, word_width(d, w), in[w * kLanes],
                  lost ? pair.nan : pair.low, lost ? pair.nan : pair.high);
  }
  return status;
}

// Chains of a task: so many that their fields stay in the cache of a core beside a block of weights, fewer where there
// would be less than a task for each thread.
int64_t chains_of_a_task(const BoltzmannGibbs& f, const BoltzmannWorkspace& at) {
  constexpr int64_t kFields = 160 * 1024;
  int64_t threads = 1;
#if defined(_OPENMP)
  if (is_long_call() && !omp_in_parallel()) threads = omp_get_max_threads();
#endif
  const int64_t share = (f.n + threads - 1) / threads, most = kFields / at.stride / (2 * kLanes) * (2 * kLanes);
  const int64_t fit = most < 2 * kLanes ? 2 * kLanes : most;
  return share < fit ? share : fit;
}

}  // namespace

void boltzmann_gibbs(const BoltzmannGibbs& f) {
  *f.status = 0;
  if (f.n == 0) return;
  const BoltzmannWorkspace at(f, false, false);
  const BoltzmannScale scale =
      f.weight == DType::f64 ? boltzmann_quantise<double>(f, at) : boltzmann_quantise<float>(f, at);
  int32_t status = scale.status;
  for (int64_t t = 0; t < f.n_sweeps; ++t)
    if (inverse_temperature(f.schedule[t]) < 0.0f) status |= kBoltzmannBadTemperature;
  const Machine machine{f, at, scale.exponent, status != 0};
  dispatch_pair(f.state, f.spins, [&](auto pair) {
    parallel_for(f.n, chains_of_a_task(f, at), [&](int64_t begin, int64_t end) {
      const int32_t s = run_chains(machine, pair, begin, end);
      if (s) __atomic_fetch_or(&status, s, __ATOMIC_RELAXED);
    });
  });
  *f.status = status;
}

}  // namespace GF_BACKEND
}  // namespace gf
