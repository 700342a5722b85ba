// A matrix that lies anywhere: element (i, j) is data[i row + j col], so slices, chunks, interleaved columns and
// expanded rows are read in place. Of a vector, col is 0.
#pragma once

#include <cstdint>

namespace gf {

struct Strided {
  const void* data;
  int64_t row, col;
};

struct StridedOut {
  void* data;
  int64_t row, col;
};

}  // namespace gf
