// Rows on the CPU with lanes that are rows: a block of kPacks registers' worth of rows is transposed into a buffer
// [d][pack] that stays in L1, or in registers for the smallest D.
#pragma once

#include "pack.h"

namespace gf {
inline namespace GF_BACKEND {

// Independent chains of multiply-adds: enough to hide their latency, few enough for the registers.
constexpr int kPacks = kVectorBytes == 16 ? 2 : 4;

// at(d, p) is the p-th pack of rows of component d. kDim > 0 fixes D at compile time, and the optimiser keeps the whole
// block in registers.
template <class P, int kDim = 0>
struct Block {
  P values[kDim][kPacks];
  explicit Block(P*) {}
  GF_HD P& at(int64_t d, int p) { return values[d][p]; }
};
template <class P>
struct Block<P, 0> {
  P* values;
  explicit Block(P* memory) : values(memory) {}
  GF_HD P& at(int64_t d, int p) { return values[d * kPacks + p]; }
};

// `count` rows of `dim` numbers; where the block has more, they are zeros.
template <class P, class B, class T>
GF_HD void load_block(B& block, const T* rows, int64_t dim, int count) {
  for (int64_t d = 0; d < dim; ++d)
    for (int p = 0; p < kPacks; ++p)
      block.at(d, p) = load_strided<P>(rows + (p * P::size) * dim + d, dim, count - p * P::size);
}

template <class P, class B, class T>
GF_HD void store_block(B& block, T* rows, int64_t dim, int count) {
  for (int64_t d = 0; d < dim; ++d)
    for (int p = 0; p < kPacks; ++p)
      store_strided(rows + (p * P::size) * dim + d, dim, block.at(d, p), count - p * P::size);
}

}  // namespace GF_BACKEND
}  // namespace gf
