#include <stdexcept>

#include "common/kernel.h"
#include "ops/ising/ising.h"

namespace gf {

GF_KERNEL(ising_gibbs, IsingGibbs) {
  k.size(GF(n)), k.size(GF(units)), k.size(GF(pointers)), k.size(GF(edges)), k.size(GF(offset_count));
  k.size(GF(beta_sweeps)), k.size(GF(beta_chains));
  k.type(GF(state), kAnyDType);
  k.tensor(GF(s), "n units");
  k.tensor(GF(row_ptr), "pointers");
  k.tensor(GF(columns), "edges");
  k.tensor(GF(weights), "edges");
  k.tensor(GF(bias), "units");
  k.tensor(GF(order), "units");
  k.tensor(GF(offsets), "offset_count");
  k.tensor(GF(beta), "beta_sweeps beta_chains");
  k.tensor(GF(clamp), "n units").or_shape("units", GF(clamp_per_chain)).optional();
  k.tensor(GF(seed), "");
  k.scalar(GF(spin)), k.scalar(GF(validate));
  k.scalar(GF(n_colours)), k.scalar(GF(n_sweeps));
  k.scalar(GF(first_chain)), k.scalar(GF(first_step));
  k.tensor(GF(out), "n units");
  k.tensor(GF(status), "1").returned();
  k.prepare([](Args& f, Backend) {
    if (f.pointers != f.units + 1) throw std::invalid_argument("row_ptr: expected [units + 1] numbers");
    if (f.n_colours < 0 || f.offset_count != f.n_colours + 1)
      throw std::invalid_argument("offsets: expected [n_colours + 1] numbers");
    if ((f.beta_sweeps != 1 && f.beta_sweeps != f.n_sweeps) || (f.beta_chains != 1 && f.beta_chains != f.n))
      throw std::invalid_argument("beta: expected [1 or n_sweeps, 1 or n]");
  });
  k.workspace(GF(workspace), DType::i32, [](const Args& f, Backend b) { return ising_workspace(f, on_gpu(b)); });
  k.work([](const Args& f) {
    const double n = static_cast<double>(f.n), units = static_cast<double>(f.units),
                 edges = static_cast<double>(f.edges);
    return 4 * (units + edges) + n * units + static_cast<double>(f.n_sweeps) * n * (units + 0.2 * edges);
  });
}

}  // namespace gf
