// Gibbs sampling of square lattices with uniform couplings: arguments, entry points, and where a site lies in memory.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/macros.h"
#include "common/stream.h"
#include "ops/ising/ising_status.h"

namespace gf {

// A square lattice as bits. Sites of row y and column x have colour (x + y) % 2 and number k = x / 2 among those of
// their row and colour. The sites of one colour are numbered by word and bit:
// - Where K = ceil(width / 2) > 32 or the lattice has a boundary, rows are whole words: word y * row_words + k / 32.
// - Else R rows share a word, R the largest power of two that divides the height with R K <= 32: word y / R, and bit
//   k + (32 / R) (y % R).
struct Lattice {
  int64_t height, width;
  bool wraps_y, wraps_x;
  int64_t rows;       // of words: height / R
  int64_t row_words;  // words of a row
  int64_t words;      // of one colour: rows * row_words
  int fields, field;  // R, and the bits 32 / R that a row has in a word
  int last;           // bit of k = K - 1 in the last word of a row, within its field

  Lattice() = default;
  Lattice(int64_t height_, int64_t width_, bool wraps_y_, bool wraps_x_)
      : height(height_), width(width_), wraps_y(wraps_y_), wraps_x(wraps_x_) {
    const int64_t k = (width + 1) / 2;
    row_words = (k + 31) / 32;
    fields = 1;
    if (wraps_y && wraps_x)
      while (height % (2 * fields) == 0 && 2 * fields * k <= 32) fields *= 2;
    field = 32 / fields;
    rows = height / fields;
    words = rows * row_words;
    last = static_cast<int>((k - 1) % 32);
  }
};

struct LatticeGibbs {
  int64_t n, height, width;
  int64_t beta_sweeps, beta_chains;  // the shape of beta: each 1, or as many as there are
  DType state;
  bool spin;  // states are -1 and 1; else 0 and 1
  bool periodic_y, periodic_x;
  double coupling_y, coupling_x, field;
  int64_t n_sweeps;
  uint32_t first_chain, first_step;
  const void* s;
  const float* beta;
  const uint8_t* clamp;  // one lattice for each chain, or one for all; null: none
  bool clamp_per_chain;
  const int64_t* seed;
  void* out;
  int32_t* status;  // null on a GPU: not wanted
  uint32_t* workspace;
  Stream stream;

  Lattice lattice() const { return Lattice(height, width, periodic_y, periodic_x); }
};

// Words of LatticeGibbs::workspace: none on the CPU. On a GPU states of both colours, then the clamp's bits in the same
// order, where lattices are too large for shared memory; and the status.
constexpr int64_t kLatticeShared = 40 * 1024;  // bytes of states and clamp that a block may have

inline int64_t lattice_block_words(const LatticeGibbs& f) { return 2 * f.lattice().words * (f.clamp ? 2 : 1); }

inline int64_t lattice_workspace(const LatticeGibbs& f, bool gpu) {
  if (!gpu) return 0;
  const int64_t words = lattice_block_words(f);
  return 16 + (4 * words > kLatticeShared ? f.n * words + f.n : 0);
}

}  // namespace gf

GF_DECLARE_BACKENDS(void lattice_gibbs(const LatticeGibbs&))
