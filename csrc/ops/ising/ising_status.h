// Reasons why states cannot be drawn, as bits of the status of lattice_gibbs and ising_gibbs.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace gf {

enum IsingStatus : int32_t {
  kIsingNotStates = 1,    // values outside of the set
  kIsingBadBeta = 2,      // a temperature that is not positive and finite
  kIsingNotFinite = 4,    // a weight or bias, or their sum
  kIsingBadGraph = 8,     // row_ptr or columns
  kIsingBadColours = 16,  // an edge inside a colour
  kIsingAsymmetric = 32   // an edge without its like in the other direction
};

}  // namespace gf
