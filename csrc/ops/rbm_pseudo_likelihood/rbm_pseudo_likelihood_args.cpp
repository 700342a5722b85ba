#include "ops/rbm_pseudo_likelihood/rbm_pseudo_likelihood.h"

#include "common/kernel.h"

namespace gf {

GF_KERNEL(rbm_pseudo_likelihood, RbmPseudoLikelihood) {
  k.size(GF(n)), k.size(GF(nv)), k.size(GF(nh));
  k.type(GF(dtype), kWide);
  k.tensor(GF(v), "n nv");
  k.tensor(GF(vbias), "nv");
  k.tensor(GF(fields), "n nh");
  k.tensor(GF(weights), "nv nh");
  k.tensor(GF(row_sums), "nv");
  k.scalar(GF(factors));
  k.tensor(GF(out), "n");
  k.workspace(GF(workspace), DType::other, [](const Args& f, Backend) { return 2 * f.n * f.nh; });
  k.work([](const Args& f) { return 0.1 * static_cast<double>(f.n * f.nv) * static_cast<double>(f.nh); });
}

}  // namespace gf
