// Joint energies on the GPU: a block a chain, a thread for every 128th hidden unit. Integers, so any order gives the
// same sum.
#include "common/states.h"
#include "ops/joint_energy/joint_energy.h"
#include "ops/rbm/rbm_quantise.cuh"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int kThreads = 128;

struct EnergyArgs {
  RbmDevice machine;
  const void *v, *h;
  double* energy;
};

template <class T, class E>
__global__ void __launch_bounds__(kThreads) joint_energy_kernel(EnergyArgs f, StateCode<E> code) {
  const RbmDevice& p = f.machine;
  const int64_t nv = p.size.nv, nh = p.size.nh;
  const bool lost = p.scalars->lost != 0;
  const int e = lost ? 0 : p.scalars->exponent;
  const T inverse = power_of_two<T>(-e);
  const T* W = static_cast<const T*>(p.W);
  for (int64_t c = blockIdx.x; c < p.size.n; c += gridDim.x) {
    const E* v = static_cast<const E*>(f.v) + c * nv;
    const E* h = static_cast<const E*>(f.h) + c * nh;
    E wrong = 0;
    int64_t total[1] = {0};
    for (int64_t i = threadIdx.x; i < nv && !lost; i += kThreads) {
      const bool on = v[i] == code.one;
      if (on) total[0] += p.bias_v[i];
      wrong |= on ? E(0) : static_cast<E>(v[i] & static_cast<E>(~code.sign));
    }
    for (int64_t j = threadIdx.x; j < nh && !lost; j += kThreads) {
      const bool on = h[j] == code.one;
      wrong |= on ? E(0) : static_cast<E>(h[j] & static_cast<E>(~code.sign));
      if (!on) continue;
      int field = p.bias_h[j];
      for (int64_t i = 0; i < nv; ++i)
        if (v[i] == code.one) field += round_even(W[i * nh + j] * inverse);
      total[0] += field;
    }
    int bad[1] = {wrong != 0};
    block_sum(total);
    block_max(bad);
    if (threadIdx.x == 0) {
      f.energy[c] = lost || bad[0] ? bit_cast<double>(uint64_t{0x7ff8000000000000u})
                                   : -static_cast<double>(total[0]) * power_of_two<double>(e);
      if (bad[0]) atomicOr(p.status, static_cast<int>(kRbmNotBinary));
    }
  }
}

template <class T>
void launch_energy(const RbmJointEnergy& f) {
  const RbmDevice machine(joint_energy_machine(f), joint_energy_workspace(f.size));
  launch_quantise<T>(machine, f.stream);
  const EnergyArgs args{machine, f.v, f.h, f.energy};
  dispatch_state(f.state, [&](auto code) {
    launch("rbm_joint_energy", joint_energy_kernel<T, decltype(code.one)>, blocks_for(f.size.n, 1), kThreads, 0,
           f.stream, args, code);
  });
}

}  // namespace

void rbm_joint_energy(const RbmJointEnergy& f) {
  f.weight == DType::f64 ? launch_energy<double>(f) : launch_energy<float>(f);
}

}  // namespace GF_BACKEND
}  // namespace gf
