// Sums over rows on the CPU, such as gradients of parameters: each chunk of rows (chunks.h) adds into `width` numbers
// of its own in the workspace, and these are added in order.
#pragma once

#include "chunks.h"
#include "parallel.h"

namespace gf {
inline namespace GF_BACKEND {

// f(begin, end, part) for every chunk of rows; the numbers of `part` are zeros.
template <class T, class F>
inline void for_chunks(int64_t n, int64_t width, void* workspace, F&& f) {
  parallel_for(row_chunks(n), 1, [&](int64_t c, int64_t) {
    T* part = static_cast<T*>(workspace) + c * width;
    for (int64_t i = 0; i < width; ++i) part[i] = 0;
    const Chunk rows = chunk_of(n, c);
    f(rows.begin, rows.end, part);
  });
}

// total[i] = the sum of number i over all chunks.
template <class T>
inline void add_chunks(int64_t n, int64_t width, const void* workspace, T* GF_RESTRICT total) {
  parallel_for(width, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) total[i] = 0;
    for (int64_t c = 0; c < row_chunks(n); ++c) {
      const T* GF_RESTRICT part = static_cast<const T*>(workspace) + c * width;
      for (int64_t i = begin; i < end; ++i) total[i] += part[i];
    }
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
