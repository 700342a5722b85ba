// How the work on rows of parameters that several numbers share is split (common/shared_rows.h): on sizes alone.
#pragma once

#include "common/shared_rows.h"
#include "ops/rq_spline/rq_spline.h"

namespace gf {
inline namespace GF_BACKEND {

// Sums of a bin, in the order x, w, y, h, d0, d1; two are padding.
constexpr int kRqSums = 8, kRqCotangents = 6;

// On the GPU a block takes as many short rows at once as it has threads for their numbers.
constexpr int kRqThreads = 128;

inline int64_t rq_rows_at_once(const RqSplineSizes& z) {
  return z.repeats > 0 && z.repeats < kRqThreads ? kRqThreads / z.repeats : 1;
}

// Blocks of the GPU's backward. With one chunk a row, a block keeps its sums to itself and takes the next rows.
inline int64_t rq_blocks(const RqSplineSizes& z, const SharedChunks& chunks) {
  if (chunks.count > 1) return chunks.count * z.all_rows;
  constexpr int64_t kMostBlocks = 1024, kMostSums = 1 << 21;
  const int64_t at_once = rq_rows_at_once(z), all = (z.all_rows + at_once - 1) / at_once;
  const int64_t fit = kMostSums / (at_once * z.bins * kRqSums);
  const int64_t most = fit < 1 ? 1 : fit < kMostBlocks ? fit : kMostBlocks;
  return all < most ? all : most;
}

// Numbers (double) in the workspace of a backward.
inline int64_t rq_workspace(const RqSplineSizes& z, bool on_gpu) {
  const SharedChunks chunks = shared_chunks(z);
  if (z.repeats == 1 || (!on_gpu && chunks.count == 1)) return 0;
  return (on_gpu ? rq_blocks(z, chunks) * rq_rows_at_once(z) : chunks.count * z.all_rows) * z.bins * kRqSums;
}

}  // namespace GF_BACKEND
}  // namespace gf
