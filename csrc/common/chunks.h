// How rows are split where their contributions are summed (gradients of parameters). The split depends on the number of
// rows alone, and the partial sums are added in order, so a result depends on neither threads nor launch shape.
#pragma once

#include <cstdint>

#include "macros.h"

namespace gf {
inline namespace GF_BACKEND {

constexpr int64_t kChunkRows = 128, kMaxChunks = 512;

GF_HD int64_t rows_per_chunk(int64_t n) {
  const int64_t even = (n + kMaxChunks - 1) / kMaxChunks;
  return even <= kChunkRows ? kChunkRows : (even + 63) / 64 * 64;
}

// At least 1, so that a workspace is never empty.
GF_HD int64_t row_chunks(int64_t n) {
  const int64_t r = rows_per_chunk(n);
  return n <= 0 ? 1 : (n + r - 1) / r;
}

// The rows of chunk c.
struct Chunk {
  int64_t begin, end;
};
GF_HD Chunk chunk_of(int64_t n, int64_t c) {
  const int64_t begin = c * rows_per_chunk(n), end = begin + rows_per_chunk(n);
  return {begin, end < n ? end : n};
}

// Numbers of a workspace in which each chunk sums `width` of them.
GF_HD int64_t chunk_workspace(int64_t n, int64_t width) { return row_chunks(n) * width; }

}  // namespace GF_BACKEND
}  // namespace gf
