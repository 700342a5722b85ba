// How rows of d numbers are dealt out to the threads of a CUDA block: `lanes` threads a row, a power of two up to a
// warp, or the whole block where rows are wide. A thread has `per` numbers of its row; component e lanes + lane is its
// e-th.
#pragma once

#include <cstdint>

#include "macros.h"

namespace gf {
inline namespace GF_BACKEND {

constexpr int kRowBlock = 128, kRowWarps = kRowBlock / 32;  // threads and warps of a block

struct RowGroups {
  int lanes, per;

  explicit RowGroups(int64_t d) : lanes(1) {
    while (lanes < 32 && 4 * lanes < d) lanes *= 2;
    if (d > 32 * lanes) lanes = kRowBlock;
    per = static_cast<int>((d + lanes - 1) / lanes);
  }
  // Of all threads of a block.
  GF_HD int64_t numbers() const { return int64_t{per} * kRowBlock; }
  GF_HD int rows() const { return kRowBlock / lanes; }
};

}  // namespace GF_BACKEND
}  // namespace gf
