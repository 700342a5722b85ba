// The pseudo-log-likelihood of an RBM on the GPU: a block takes a row, and a warp a visible unit at a time.
#include "ops/rbm_pseudo_likelihood/rbm_pseudo_likelihood.h"

#include "common/launch.cuh"
#include "common/real.h"
#include "common/reduce.cuh"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;

template <class T>
struct Args {
  int64_t n, nv, nh;
  const T *v, *vbias, *fields, *weights, *row_sums;
  int64_t factors;
  T *out, *p, *q;
};

template <class T>
__global__ void __launch_bounds__(kThreads) rbm_pseudo_likelihood_kernel(Args<T> f) {
  const int lane = lane_index();
  for (int64_t n = blockIdx.x; n < f.n; n += gridDim.x) {
    const T* x = f.fields + n * f.nh;
    T *p = f.p + n * f.nh, *q = f.q + n * f.nh;
    for (int64_t j = threadIdx.x; j < f.nh; j += kThreads) {
      const T t = exp(-abs(x[j])), w = T(1) / (T(1) + t);
      p[j] = (x[j] > T(0) ? w : t * w) + (x[j] - x[j]);
      q[j] = x[j] > T(0) ? t * w : w;
    }
    __syncthreads();
    double total = 0;
    for (int64_t i = warp_index(); i < f.nv; i += kWarps) {
      const bool on = f.v[n * f.nv + i] != T(0);
      const T* row = f.weights + i * f.nh;
      T change = 0;
      if (f.factors > 0) {
        const T *first = on ? p : q, *second = on ? q : p;
        T product = 1;
        int64_t left = f.factors;
        for (int64_t j = lane; j < f.nh; j += kWarpSize) {
          product *= fma(second[j], row[j], first[j]);
          if (--left == 0) {
            change += log(product);
            product = 1;
            left = f.factors;
          }
        }
        change += log(product);
      } else {
        for (int64_t j = lane; j < f.nh; j += kWarpSize)
          change += softplus(x[j] + (on ? -row[j] : row[j])) - softplus(x[j]);
      }
      change = warp_sum(change);
      if (on && f.factors > 0) change -= f.row_sums[i];
      if (lane == 0) total -= static_cast<double>(softplus(on ? change - f.vbias[i] : change + f.vbias[i]));
    }
    total = block_sum(total);
    if (threadIdx.x == 0) f.out[n] = static_cast<T>(total);
    __syncthreads();  // the next row's p and q
  }
}

template <class T>
void launch_rows(const RbmPseudoLikelihood& f) {
  T* p = static_cast<T*>(f.workspace);
  const Args<T> args{f.n,
                     f.nv,
                     f.nh,
                     static_cast<const T*>(f.v),
                     static_cast<const T*>(f.vbias),
                     static_cast<const T*>(f.fields),
                     static_cast<const T*>(f.weights),
                     static_cast<const T*>(f.row_sums),
                     f.factors,
                     static_cast<T*>(f.out),
                     p,
                     p + f.n * f.nh};
  launch("rbm_pseudo_likelihood", rbm_pseudo_likelihood_kernel<T>, blocks_for(f.n, 1), kThreads, 0, f.stream, args);
}

}  // namespace

void rbm_pseudo_likelihood(const RbmPseudoLikelihood& f) {
  f.dtype == DType::f64 ? launch_rows<double>(f) : launch_rows<float>(f);
}

}  // namespace GF_BACKEND
}  // namespace gf
