// Updates of a few rows each leave a GPU idle: they run on the CPU.
#include <stdexcept>

#include "ops/rbm/rbm.h"

namespace gf {
inline namespace GF_BACKEND {

void rbm_pcd_updates(const RbmPcdUpdates&) {
  throw std::invalid_argument("rbm_pcd_updates: there is no such kernel on a GPU");
}

}  // namespace GF_BACKEND
}  // namespace gf
