// How much memory the kernels of a Sylvester flow share out, and what lies where in it.
#pragma once

#include "common/outer_tiles.h"
#include "common/row_groups.h"
#include "ops/sylvester/sylvester.h"

namespace gf {
inline namespace GF_BACKEND {

// On the CPU, what a chunk of rows sums of one layer: gradients of U, W, T in tiles, of b, and c of sylvester_math.h.
class SylvesterSums {
 public:
  GF_HD explicit SylvesterSums(const Sylvester& f)
      : wide_(outer_size(f.d, f.m)), square_(f.inverse ? outer_size(f.m, f.m) : 0), m_(f.m) {}
  GF_HD int64_t u() const { return 0; }
  GF_HD int64_t w() const { return wide_; }
  GF_HD int64_t square() const { return 2 * wide_; }
  GF_HD int64_t b() const { return 2 * wide_ + square_; }
  GF_HD int64_t c() const { return b() + m_; }
  GF_HD int64_t size() const { return c() + m_; }

 private:
  int64_t wide_, square_, m_;
};

// On a GPU a block takes a tile of rows, and a thread `per` of its rows in each of the columns it works on: a packet of
// four floats, or one row for doubles (four would not fit in the registers) and where D and M are large.
struct SylvesterTile {
  int per;
  int64_t columns;  // in shared memory: z or g, h, e, and a sum of logs for each warp

  explicit SylvesterTile(const Sylvester& f) : per(1), columns(f.d + 2 * f.m + kRowWarps) {
    constexpr int64_t kMost = 96 * 1024 / sizeof(float);  // so that two blocks share a multiprocessor
    if (f.dtype != DType::f64 && columns * numbers(4) <= kMost) per = 4;
  }
  // Of a column, with a packet between columns that lets threads read side by side along either.
  static constexpr int numbers(int per) { return 33 * per; }
  int64_t kept(const Sylvester& f) const { return f.k * (f.d + 2 * f.m) * numbers(per); }
};

// U, W, T and t of every layer; what is summed over rows.
GF_HD int64_t sylvester_products(const Sylvester& f) { return f.k * (2 * f.d * f.m + f.m * f.m + f.m); }
GF_HD int64_t sylvester_sums(const Sylvester& f) { return f.k * (2 * f.d * f.m + f.m * f.m + 2 * f.m); }

}  // namespace GF_BACKEND
}  // namespace gf
