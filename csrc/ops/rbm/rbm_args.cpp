#include <stdexcept>

#include "common/kernel.h"
#include "ops/rbm/rbm.h"

namespace gf {

GF_KERNEL(rbm_gibbs, RbmGibbs) {
  k.size(GF(size.n)), k.size(GF(size.nv)), k.size(GF(size.nh));
  k.type(GF(state), kAnyDType);
  k.type(GF(weight), kWide);
  k.tensor(GF(v), "n nv");
  k.tensor(GF(W), "nv nh").of("weight");
  k.tensor(GF(vbias), "nv").of("weight");
  k.tensor(GF(hbias), "nh").of("weight");
  k.tensor(GF(beta), "n").or_shape("1", GF(beta_per_chain));
  k.tensor(GF(clamp), "n nv").or_shape("nv", GF(clamp_per_chain)).optional();
  k.tensor(GF(seed), "");
  k.scalar(GF(n_steps));
  k.scalar(GF(first_chain));
  k.scalar(GF(first_step));
  k.tensor(GF(out_v), "n nv");
  k.tensor(GF(out_h), "n nh");
  k.tensor(GF(status), "1").returned();
  k.workspace(GF(workspace), DType::i32, [](const Args& f, Backend) { return RbmWorkspace(f.size).total; });
  k.work([](const Args& f) {
    const double n = f.size.n, weights = f.size.nv * f.size.nh, draws = n * (f.size.nv + f.size.nh);
    return 2 * weights + f.n_steps * (0.03 * n * weights + draws);
  });
}

GF_KERNEL(rbm_free_energy, RbmFreeEnergy) {
  k.size(GF(size.n)), k.size(GF(size.nv)), k.size(GF(size.nh));
  k.type(GF(dtype), kWide);
  k.tensor(GF(v), "n nv");
  k.tensor(GF(vbias), "nv");
  k.tensor(GF(fields), "n nh");
  k.tensor(GF(energy), "n");
}

GF_KERNEL(rbm_sparse_product, RbmSparseProduct) {
  k.size(GF(rows)), k.size(GF(inner)), k.size(GF(columns));
  k.tensor(GF(left), "rows inner").shape_if(GF(transposed), "inner rows");
  k.tensor(GF(right), "inner columns");
  k.tensor(GF(scale), "inner").optional();
  k.tensor(GF(init), "columns").optional();
  k.scalar(GF(transposed));
  k.tensor(GF(out), "rows columns");
  k.work([](const Args& f) { return static_cast<double>(f.rows * f.inner) * (1 + 0.02 * f.columns); });
}

GF_KERNEL(rbm_cd, RbmCd) {
  k.size(GF(size.n)), k.size(GF(size.nv)), k.size(GF(size.nh)), k.size(GF(n_data));
  k.tensor(GF(data), "n_data nv").optional();
  k.tensor(GF(start), "n nv").optional();
  k.tensor(GF(W), "nv nh");
  k.tensor(GF(vbias), "nv");
  k.tensor(GF(hbias), "nh");
  k.tensor(GF(seed), "");
  k.scalar(GF(draws));
  k.scalar(GF(n_steps));
  k.scalar(GF(first_chain));
  k.scalar(GF(first_step));
  k.tensor(GF(out_v), "n nv");
  k.tensor(GF(grad_W), "nv nh");
  k.tensor(GF(grad_vbias), "nv");
  k.tensor(GF(grad_hbias), "nh");
  k.tensor(GF(loss), "1").optional();
  k.tensor(GF(status), "1").returned();
  k.prepare([](Args& f, Backend) {
    if (f.data == nullptr) f.n_data = 0;
    if (f.size.n == 0 || (f.data != nullptr && f.n_data == 0))
      throw std::invalid_argument("rbm_cd: got no rows, want at least one");
    if (f.start == nullptr && f.n_data != f.size.n)
      throw std::invalid_argument("rbm_cd: got no start, and other rows of data than chains");
  });
  k.workspace(GF(workspace), DType::i32, [](const Args& f, Backend) { return RbmCdWorkspace(f).total; });
  k.work([](const Args& f) {
    const double n = f.size.n + f.n_data, weights = f.size.nv * f.size.nh, draws = n * (f.size.nv + f.size.nh);
    return 2 * weights + (f.n_steps + 2) * (0.03 * n * weights + draws);
  });
}

}  // namespace gf
