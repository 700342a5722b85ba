// Rows of parameters that several numbers read: where each lies, and how the work on them is split. The split depends
// on sizes alone: the sums of a chunk are taken in float64, and chunks are added in order, so that results depend on
// neither threads nor launch shape.
//
// Numbers [groups, numbers] read rows [groups, rows, ...]: number i of its group reads row (i / inner) % rows. `Sizes`
// is the part of an op's arguments that has these members, with count and all_rows, the numbers and rows over all
// groups, and repeats, the numbers that read one row.
#pragma once

#include <cstdint>

#include "macros.h"

namespace gf {
inline namespace GF_BACKEND {

// The row that number i of all reads.
template <class Sizes>
GF_HD int64_t shared_row_of(const Sizes& z, int64_t i) {
  return z.repeats == 1 ? i : i / z.numbers * z.rows + i / z.inner % z.rows;
}

// Where number v of row r lies. A row's numbers are runs of `inner`.
template <class Sizes>
GF_HD int64_t shared_number_at(const Sizes& z, int64_t r, int64_t v) {
  if (z.repeats == 1) return r;
  return r / z.rows * z.numbers + v / z.inner * (z.rows * z.inner) + r % z.rows * z.inner + v % z.inner;
}

// A unit of work is one chunk of one row: unit u is chunk u / all_rows of row u % all_rows.
struct SharedChunks {
  int64_t numbers, count;  // of one row
};

// As many chunks as make about `units` units, each of `least` numbers or more, and of a multiple of `step`.
template <class Sizes>
inline SharedChunks shared_chunks(const Sizes& z, int64_t least = 2048, int64_t units = 512, int64_t step = 64) {
  const int64_t rows = z.all_rows > 0 ? z.all_rows : 1;
  int64_t chunks = (z.repeats + least - 1) / least;
  if (chunks > units / rows) chunks = units / rows;
  if (chunks < 1) chunks = 1;
  const int64_t numbers = ((z.repeats + chunks - 1) / chunks + step - 1) / step * step;
  return {numbers, z.repeats > 0 ? (z.repeats + numbers - 1) / numbers : 1};
}

// f(how many before it, index in memory, length) for each run of the numbers v ... v + count of a row.
template <class Sizes, class F>
GF_HD void for_runs(const Sizes& z, int64_t row, int64_t v, int count, F&& f) {
  int64_t at = shared_number_at(z, row, v), left = z.inner - v % z.inner;
  for (int done = 0; done < count;) {
    const int length = left < count - done ? static_cast<int>(left) : count - done;
    f(done, at, length);
    done += length;
    at += left + (z.rows - 1) * z.inner;
    left = z.inner;
  }
}

}  // namespace GF_BACKEND
}  // namespace gf
