#include "common/kernel.h"
#include "ops/rbm_ais/rbm_ais.h"

namespace gf {

GF_KERNEL(rbm_ais, RbmAis) {
  k.size(GF(size.n)), k.size(GF(size.nv)), k.size(GF(size.nh)), k.size(GF(n_steps));
  k.type(GF(dtype), kWide);
  k.tensor(GF(v), "n nv");
  k.tensor(GF(W), "nv nh");
  k.tensor(GF(vbias), "nv");
  k.tensor(GF(hbias), "nh");
  k.tensor(GF(base), "nv");
  k.tensor(GF(slope), "nv");
  k.tensor(GF(betas), "n_steps");
  k.tensor(GF(next_betas), "n_steps");
  k.tensor(GF(log_weights), "n").optional();
  k.tensor(GF(seed), "");
  k.scalar(GF(slope_unit));
  k.scalar(GF(first_run));
  k.scalar(GF(first_step));
  k.tensor(GF(out_v), "n nv");
  k.tensor(GF(out_log_weights), "n");
  k.workspace(GF(workspace), DType::i32, [](const Args& f, Backend) { return RbmAisWorkspace(f.size).total; });
  k.work([](const Args& f) {
    const double n = f.size.n, weights = f.size.nv * f.size.nh, draws = n * (f.size.nv + 2 * f.size.nh);
    return 2 * weights + f.n_steps * (0.03 * n * weights + draws);
  });
}

}  // namespace gf
