// The joint energy E(v, h) = -a.v - b.h - v'W h of states 0/1 of an RBM: arguments and entry points of every backend.
// Weights and biases are those of a Gibbs chain, integer multiples of 2^e (gibbs.h): the sum is an exact integer.
#pragma once

#include <cstdint>

#include "ops/rbm/rbm.h"

namespace gf {

// Shapes and dtypes: joint_energy_args.cpp.
struct RbmJointEnergy {
  RbmSizes size;
  DType state, weight;
  const void *v, *h, *W, *vbias, *hbias;
  double* energy;
  int32_t* status;     // bits of RbmStatus; null on a GPU: not wanted
  int32_t* workspace;  // that of a call of rbm_gibbs without chains
  Stream stream;
};

inline RbmWorkspace joint_energy_workspace(const RbmSizes& s) { return RbmWorkspace(RbmSizes{0, s.nv, s.nh}); }

// What quantising reads of a call of rbm_gibbs.
inline RbmGibbs joint_energy_machine(const RbmJointEnergy& f) {
  RbmGibbs g{};
  g.size = f.size;
  g.weight = f.weight;
  g.W = f.W;
  g.vbias = f.vbias;
  g.hbias = f.hbias;
  g.status = f.status;
  g.workspace = f.workspace;
  g.stream = f.stream;
  return g;
}

}  // namespace gf

GF_DECLARE_BACKENDS(void rbm_joint_energy(const RbmJointEnergy&))
