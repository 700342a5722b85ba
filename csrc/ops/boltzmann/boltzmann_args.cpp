#include "common/kernel.h"
#include "ops/boltzmann/boltzmann.h"

namespace gf {

GF_KERNEL(boltzmann_gibbs, BoltzmannGibbs) {
  k.size(GF(n)), k.size(GF(d)), k.size(GF(n_sweeps));
  k.type(GF(state), kAnyDType);
  k.type(GF(weight), kWide);
  k.tensor(GF(s), "n d");
  k.tensor(GF(J), "d d").of("weight");
  k.tensor(GF(bias), "d").of("weight");
  k.tensor(GF(temperature), "n").or_shape("1", GF(temperature_per_chain));
  k.tensor(GF(schedule), "n_sweeps");
  k.tensor(GF(clamp), "n d").or_shape("d", GF(clamp_per_chain)).optional();
  k.tensor(GF(seed), "");
  k.scalar(GF(spins));
  k.scalar(GF(random_order));
  k.scalar(GF(first_chain));
  k.scalar(GF(first_step));
  k.tensor(GF(out), "n d");
  k.tensor(GF(status), "1").returned();
  k.workspace(GF(workspace), DType::i32, [](const Args& f, Backend backend) {
    const bool gpu = on_gpu(backend);
    const bool far = gpu && boltzmann_shared_bytes(f.d) > boltzmann_shared_limit(backend == Backend::simt);
    return BoltzmannWorkspace(f, gpu, far).total;
  });
  k.work([](const Args& f) {
    const double draws = static_cast<double>(f.n * f.d), weights = static_cast<double>(f.d * f.d);
    return weights + draws * (0.02 * f.d + f.n_sweeps * (4 + 0.01 * f.d));
  });
}

}  // namespace gf
