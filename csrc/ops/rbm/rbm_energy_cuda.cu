// The free energy of an RBM on the GPU: one block a row, behind torch's product for the hidden fields.
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "ops/rbm/rbm.h"
#include "ops/rbm/rbm_energy_math.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int kThreads = 128;

template <class T>
__global__ void rbm_free_energy_kernel(RbmSizes size, const T* v, const T* vbias, T* fields, T* energy) {
  for (int64_t n = blockIdx.x; n < size.n; n += gridDim.x) {
    T total = 0;
    for (int64_t i = threadIdx.x; i < size.nv; i += kThreads) total += v[n * size.nv + i] * vbias[i];
    for (int64_t j = threadIdx.x; j < size.nh; j += kThreads) {
      const RbmUnit<T> u = rbm_unit(fields[n * size.nh + j]);
      fields[n * size.nh + j] = u.p;
      total += u.softplus;
    }
    total = block_sum(total);
    if (threadIdx.x == 0) energy[n] = -total;
  }
}

template <class T>
void launch_energy(const RbmFreeEnergy& f) {
  launch("rbm_free_energy", rbm_free_energy_kernel<T>, blocks_for(f.size.n, 1), kThreads, 0, f.stream, f.size,
         static_cast<const T*>(f.v), static_cast<const T*>(f.vbias), static_cast<T*>(f.fields),
         static_cast<T*>(f.energy));
}

}  // namespace

void rbm_free_energy(const RbmFreeEnergy& f) {
  f.dtype == DType::f64 ? launch_energy<double>(f) : launch_energy<float>(f);
}

bool rbm_sparse_product(const RbmSparseProduct&) { return false; }

}  // namespace GF_BACKEND
}  // namespace gf
