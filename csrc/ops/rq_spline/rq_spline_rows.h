// Rows of parameters and the numbers that read them: where each lies, and how the work on shared rows is split. The
// split depends on sizes alone: the sums of a chunk are taken in float64, and chunks are added in order, so that
// results depend on neither threads nor launch shape.
#pragma once

#include "common/macros.h"
#include "ops/rq_spline/rq_spline.h"

namespace gf {
inline namespace GF_BACKEND {

// Sums of a bin, in the order x, w, y, h, d0, d1; two are padding.
constexpr int kRqSums = 8, kRqCotangents = 6;

// The row that number i of all reads.
GF_HD int64_t rq_row_of(const RqSplineSizes& z, int64_t i) {
  return z.repeats == 1 ? i : i / z.numbers * z.rows + i / z.inner % z.rows;
}

// Where number v of row r lies. A row's numbers are runs of `inner`.
GF_HD int64_t rq_number_at(const RqSplineSizes& z, int64_t r, int64_t v) {
  if (z.repeats == 1) return r;
  return r / z.rows * z.numbers + v / z.inner * (z.rows * z.inner) + r % z.rows * z.inner + v % z.inner;
}

// A unit of work is one chunk of one row: unit u is chunk u / all_rows of row u % all_rows.
struct RqChunks {
  int64_t numbers, count;  // of one row
};

inline RqChunks rq_chunks(const RqSplineSizes& z) {
  constexpr int64_t kLeast = 2048, kUnits = 512;
  const int64_t rows = z.all_rows > 0 ? z.all_rows : 1;
  int64_t chunks = (z.repeats + kLeast - 1) / kLeast;
  if (chunks > kUnits / rows) chunks = kUnits / rows;
  if (chunks < 1) chunks = 1;
  const int64_t numbers = ((z.repeats + chunks - 1) / chunks + 63) / 64 * 64;
  return {numbers, z.repeats > 0 ? (z.repeats + numbers - 1) / numbers : 1};
}

// On the GPU a block takes as many short rows at once as it has threads for their numbers.
constexpr int kRqThreads = 128;

inline int64_t rq_rows_at_once(const RqSplineSizes& z) {
  return z.repeats > 0 && z.repeats < kRqThreads ? kRqThreads / z.repeats : 1;
}

// Blocks of the GPU's backward. With one chunk a row, a block keeps its sums to itself and takes the next rows.
inline int64_t rq_blocks(const RqSplineSizes& z, const RqChunks& chunks) {
  if (chunks.count > 1) return chunks.count * z.all_rows;
  constexpr int64_t kMostBlocks = 1024, kMostSums = 1 << 21;
  const int64_t at_once = rq_rows_at_once(z), all = (z.all_rows + at_once - 1) / at_once;
  const int64_t fit = kMostSums / (at_once * z.bins * kRqSums);
  const int64_t most = fit < 1 ? 1 : fit < kMostBlocks ? fit : kMostBlocks;
  return all < most ? all : most;
}

// Numbers (double) in the workspace of a backward.
inline int64_t rq_workspace(const RqSplineSizes& z, bool on_gpu) {
  const RqChunks chunks = rq_chunks(z);
  if (z.repeats == 1 || (!on_gpu && chunks.count == 1)) return 0;
  return (on_gpu ? rq_blocks(z, chunks) * rq_rows_at_once(z) : chunks.count * z.all_rows) * z.bins * kRqSums;
}

}  // namespace GF_BACKEND
}  // namespace gf
