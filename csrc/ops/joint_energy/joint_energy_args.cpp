#include "common/kernel.h"
#include "ops/joint_energy/joint_energy.h"

namespace gf {

GF_KERNEL(rbm_joint_energy, RbmJointEnergy) {
  k.size(GF(size.n)), k.size(GF(size.nv)), k.size(GF(size.nh));
  k.type(GF(state), kAnyDType);
  k.type(GF(weight), kWide);
  k.tensor(GF(v), "n nv");
  k.tensor(GF(h), "n nh");
  k.tensor(GF(W), "nv nh").of("weight");
  k.tensor(GF(vbias), "nv").of("weight");
  k.tensor(GF(hbias), "nh").of("weight");
  k.tensor(GF(energy), "n");
  k.tensor(GF(status), "1").returned();
  k.workspace(GF(workspace), DType::i32, [](const Args& f, Backend) { return joint_energy_workspace(f.size).total; });
  k.work([](const Args& f) { return (2.0 + 0.02 * f.size.n) * f.size.nv * f.size.nh; });
}

}  // namespace gf
