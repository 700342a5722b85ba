// Where a sum of outer products over rows (column_products.h) keeps its m x n numbers: in tiles of 4 x 4, so that the
// lanes of a register are sums that lie side by side.
#pragma once

#include <cstdint>

#include "macros.h"

namespace gf {
inline namespace GF_BACKEND {

constexpr int64_t kOuterTile = 4;
GF_HD int64_t outer_tiles(int64_t n) { return (n + kOuterTile - 1) / kOuterTile; }
// Numbers that a sum takes, and where entry (i, j) of it lies.
GF_HD int64_t outer_size(int64_t m, int64_t n) { return outer_tiles(m) * outer_tiles(n) * kOuterTile * kOuterTile; }
GF_HD int64_t outer_at(int64_t i, int64_t j, int64_t n) {
  const int64_t tile = i / kOuterTile * outer_tiles(n) + j / kOuterTile;
  return (tile * kOuterTile + i % kOuterTile) * kOuterTile + j % kOuterTile;
}

}  // namespace GF_BACKEND
}  // namespace gf
