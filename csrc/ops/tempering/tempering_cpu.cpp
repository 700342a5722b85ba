// Replica exchange on the CPU: the ladders of a register at a time.
#include <cstdint>

#include "common/gibbs_lanes.h"
#include "common/parallel.h"
#include "ops/tempering/tempering_math.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

// Ladders [first, first + count), count <= kLanes. Returns whether an order names no replica.
bool swap_group(const TemperingSwap& f, int64_t first, int64_t count) {
  bool bad = false;
  for (int64_t c = first; c < first + count; ++c) {
    for (int64_t level = 0; level < f.k; ++level) {
      const int64_t replica = replica_at(f, c, level);
      bad |= !is_replica(f, replica);
      f.out_order[c * f.k + level] = replica;
    }
  }
  const uint64_t seed = static_cast<uint64_t>(*f.seed);
  const WordLanes ladders = lane_numbers() + (f.first_chain + static_cast<uint32_t>(first));
  PhiloxWords<WordLanes> words;
  int64_t drawn = -1;  // the block whose words these are
  float lanes[kLanes] = {};
  for (int64_t pair = 0; pair < f.pairs; ++pair) {
    for (int64_t i = 0; i < count; ++i) lanes[i] = log_ratio(f, first + i, pair);
    const FloatLanes p = swap_probability<VectorLane>(load_lanes<FloatLanes>(lanes));
    for (int64_t i = 0; i < count; ++i) f.probability[(first + i) * f.pairs + pair] = p[i];
    if ((pair ^ f.step) & 1) continue;
    if (pair / 4 != drawn) {
      drawn = pair / 4;
      words = philox(ladders, WordLanes{} + static_cast<uint32_t>(drawn), f.step, kStreamTempering, seed);
    }
    const IntLanes accepted = swap_accepted<VectorLane>(p, words.w[pair % 4]);
    for (int64_t i = 0; i < count; ++i) {
      int64_t* level = f.out_order + (first + i) * f.k + pair;
      const int64_t x = level[0], y = level[1];
      level[0] = accepted[i] ? y : x;
      level[1] = accepted[i] ? x : y;
    }
  }
  return bad;
}

}  // namespace

void tempering_swap(const TemperingSwap& f) {
  int32_t status = 0;
  parallel_for((f.n + kLanes - 1) / kLanes, 8, [&](int64_t begin, int64_t end) {
    bool bad = false;
    for (int64_t g = begin; g < end; ++g) {
      const int64_t first = g * kLanes, left = f.n - first;
      bad |= swap_group(f, first, left < kLanes ? left : kLanes);
    }
    if (bad) __atomic_store_n(&status, kTemperingBadOrder, __ATOMIC_RELAXED);
  });
  *f.status = status;
}

}  // namespace GF_BACKEND
}  // namespace gf
