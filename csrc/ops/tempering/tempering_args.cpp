#include <stdexcept>

#include "common/kernel.h"
#include "ops/tempering/tempering.h"

namespace gf {

GF_KERNEL(tempering_swap, TemperingSwap) {
  k.size(GF(n)), k.size(GF(k)), k.size(GF(pairs));
  k.tensor(GF(energies), "n k");
  k.tensor(GF(betas), "k").optional();
  k.tensor(GF(order), "n k").optional();
  k.tensor(GF(seed), "");
  k.scalar(GF(first_chain));
  k.scalar(GF(step));
  k.tensor(GF(out_order), "n k");
  k.tensor(GF(probability), "n pairs");
  k.tensor(GF(status), "1").returned();
  k.prepare([](Args& a, Backend) {
    if (a.pairs + 1 != a.k) throw std::invalid_argument("probability: expected shape [n, k - 1]");
  });
  k.work([](const Args& f) { return 10.0 * static_cast<double>(f.n * f.k); });
}

}  // namespace gf
