// Replica exchange on the GPU: a thread a level, which decides about the pair below it and that above it alike.
#include "common/launch.cuh"
#include "ops/tempering/tempering_math.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int kThreads = 128;

__global__ void tempering_swap_kernel(TemperingSwap f) {
  const uint64_t seed = static_cast<uint64_t>(*f.seed);
  for (int64_t at = grid_thread(); at < f.n * f.k; at += grid_threads()) {
    const int64_t ladder = at / f.k, level = at % f.k;
    const bool below = ((level ^ f.step) & 1) != 0;  // the level's partner is below it
    const int64_t pair = below ? level - 1 : level;
    int64_t from = level;
    if (level < f.pairs)
      f.probability[ladder * f.pairs + level] = swap_probability<ScalarLane>(log_ratio(f, ladder, level));
    if (pair >= 0 && pair < f.pairs) {
      const float p = swap_probability<ScalarLane>(log_ratio(f, ladder, pair));
      const uint32_t row = f.first_chain + static_cast<uint32_t>(ladder);
      const PhiloxWords<uint32_t> words = philox(row, static_cast<uint32_t>(pair / 4), f.step, kStreamTempering, seed);
      const int which = static_cast<int>(pair % 4);
      const uint32_t word = which == 0 ? words.w[0] : which == 1 ? words.w[1] : which == 2 ? words.w[2] : words.w[3];
      if (swap_accepted<ScalarLane>(p, word)) from = below ? level - 1 : level + 1;
    }
    const int64_t replica = replica_at(f, ladder, from);
    f.out_order[at] = replica;
    if (f.status && !is_replica(f, replica)) atomicOr(f.status, static_cast<int>(kTemperingBadOrder));
  }
}

}  // namespace

void tempering_swap(const TemperingSwap& f) {
  launch("tempering_swap", tempering_swap_kernel, blocks_for(f.n * f.k, kThreads), kThreads, 0, f.stream, f);
}

}  // namespace GF_BACKEND
}  // namespace gf
