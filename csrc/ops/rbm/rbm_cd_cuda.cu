// On a GPU a step of contrastive divergence is made of rbm_gibbs and dense products.
#include <stdexcept>

#include "ops/rbm/rbm.h"

namespace gf {
inline namespace GF_BACKEND {

void rbm_cd(const RbmCd& f) {
#if defined(__CUDACC__)
  throw std::invalid_argument("rbm_cd: there is no such kernel on a GPU");
#else
  *f.status = kRbmElsewhere;
#endif
}

}  // namespace GF_BACKEND
}  // namespace gf
