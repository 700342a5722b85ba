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

GF_KERNEL(rbm_pcd_updates, RbmPcdUpdates) {
  k.size(GF(n_starts)), k.size(GF(entries)), k.size(GF(n_edges));
  k.size(GF(nv)), k.size(GF(nh)), k.size(GF(width)), k.size(GF(m));
  k.type(GF(dtype), kWide);
  k.tensor(GF(starts), "n_starts");
  k.tensor(GF(indices), "entries");
  k.tensor(GF(values), "entries");
  k.tensor(GF(edges), "n_edges");
  k.tensor(GF(seed), "");
  k.scalar(GF(learning_rate));
  k.scalar(GF(first_step));
  k.tensor(GF(W), "nv width");
  k.tensor(GF(vbias), "nv");
  k.tensor(GF(hbias), "width");
  k.tensor(GF(chains), "m nh");
  k.prepare([](Args& f, Backend) {
    if (f.width % 16 != 0 || f.width < f.nh) throw std::invalid_argument("W: expected rows padded to a multiple of 16");
    f.n_batches = f.n_edges - 1;
    bool ordered = f.n_starts > 0 && f.starts[0] == 0 && f.starts[f.n_starts - 1] == f.entries;
    for (int64_t i = 0; ordered && i + 1 < f.n_starts; ++i) ordered = f.starts[i] <= f.starts[i + 1];
    if (!ordered) throw std::invalid_argument("starts: expected where rows start, from 0 to the number of entries");
    ordered = f.n_batches < 0 || (f.edges[0] >= 0 && f.edges[f.n_batches] < f.n_starts);
    for (int64_t i = 0; ordered && i < f.n_batches; ++i) ordered = f.edges[i] < f.edges[i + 1];
    if (!ordered) throw std::invalid_argument("edges: expected numbers of rows in rising order");
    for (int64_t i = 0; i < f.entries; ++i)
      if (f.indices[i] < 0 || f.indices[i] >= f.nv)
        throw std::invalid_argument("indices: expected numbers of visible units");
  });
  k.work([](const Args& f) {
    return static_cast<double>(f.n_edges) * static_cast<double>(f.nv) * static_cast<double>(f.width + 16);
  });
}

}  // namespace gf
