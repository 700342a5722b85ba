// The CPU loop over rows. Threads are OpenMP's, of the runtime that torch has loaded, so torch.set_num_threads holds.
#pragma once

#include <cstdint>

#include "macros.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace gf {

// Whether the call in progress is long enough for a second thread to gain anything; of this thread (binding.cpp).
bool is_long_call();

inline namespace GF_BACKEND {

// f(begin, end) over a partition of [0, count) into blocks of `grain`; blocks go to threads, one thread if there is
// one.
template <class F>
inline void parallel_for(int64_t count, int64_t grain, F&& f) {
  if (count <= 0) return;
  const int64_t blocks = (count + grain - 1) / grain;
#if defined(_OPENMP)
  if (blocks > 1 && is_long_call() && omp_get_max_threads() > 1 && !omp_in_parallel()) {
    const int64_t threads = omp_get_max_threads();
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(blocks < threads ? blocks : threads))
    for (int64_t i = 0; i < blocks; ++i) f(i * grain, (i + 1) * grain < count ? (i + 1) * grain : count);
    return;
  }
#endif
  for (int64_t i = 0; i < blocks; ++i) f(i * grain, (i + 1) * grain < count ? (i + 1) * grain : count);
}

}  // namespace GF_BACKEND
}  // namespace gf
