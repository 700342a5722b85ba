#include <stdexcept>

#include "common/kernel.h"
#include "ops/ising/lattice.h"

namespace gf {

GF_KERNEL(lattice_gibbs, LatticeGibbs) {
  k.size(GF(n)), k.size(GF(height)), k.size(GF(width)), k.size(GF(beta_sweeps)), k.size(GF(beta_chains));
  k.type(GF(state), kAnyDType);
  k.tensor(GF(s), "n height width");
  k.tensor(GF(beta), "beta_sweeps beta_chains");
  k.tensor(GF(clamp), "n height width").or_shape("height width", GF(clamp_per_chain)).optional();
  k.tensor(GF(seed), "");
  k.scalar(GF(spin));
  k.scalar(GF(periodic_y)), k.scalar(GF(periodic_x));
  k.scalar(GF(coupling_y)), k.scalar(GF(coupling_x)), k.scalar(GF(field));
  k.scalar(GF(n_sweeps));
  k.scalar(GF(first_chain)), k.scalar(GF(first_step));
  k.tensor(GF(out), "n height width");
  k.tensor(GF(status), "1").returned();
  k.prepare([](Args& f, Backend) {
    if ((f.beta_sweeps != 1 && f.beta_sweeps != f.n_sweeps) || (f.beta_chains != 1 && f.beta_chains != f.n))
      throw std::invalid_argument("beta: expected [1 or n_sweeps, 1 or n]");
    if ((f.periodic_y && f.height % 2 != 0) || (f.periodic_x && f.width % 2 != 0))
      throw std::invalid_argument("s: expected even sizes of a periodic lattice, which has no two colours otherwise");
    if (f.lattice().words >= int64_t{1} << 31)
      throw std::invalid_argument("s: expected at most 2^36 sites of a lattice, whose words are numbered by 32 bits");
  });
  k.workspace(GF(workspace), DType::i32, [](const Args& f, Backend b) { return lattice_workspace(f, on_gpu(b)); });
  k.work([](const Args& f) {
    return static_cast<double>(f.n * f.height * f.width) * (1.0 + 0.5 * static_cast<double>(f.n_sweeps));
  });
}

}  // namespace gf
