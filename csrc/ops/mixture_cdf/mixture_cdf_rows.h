// Arrays of a call in their types, and how the work on shared rows is split: on sizes alone.
#pragma once

#include "common/shared_rows.h"
#include "ops/mixture_cdf/mixture_cdf.h"

namespace gf {
inline namespace GF_BACKEND {

// What a direction does not have is null.
template <class S>
struct MixtureArrays {
  using T = compute_t<S>;
  const S *x, *logits, *means, *log_scales, *y, *grad_y;
  const T* grad_log_det;
  S* out;
  T* log_det;
  S *grad_x, *grad_logits, *grad_means, *grad_log_scales;

  bool backward() const { return grad_means != nullptr; }  // of no numbers too
};

template <class S, class F>
MixtureArrays<S> mixture_inputs(const F& f) {
  MixtureArrays<S> a{};
  a.x = static_cast<const S*>(f.x);
  a.logits = static_cast<const S*>(f.logits);
  a.means = static_cast<const S*>(f.means);
  a.log_scales = static_cast<const S*>(f.log_scales);
  return a;
}

template <class S>
MixtureArrays<S> mixture_arrays(const MixtureForward& f) {
  MixtureArrays<S> a = mixture_inputs<S>(f);
  a.out = static_cast<S*>(f.y);
  a.log_det = static_cast<compute_t<S>*>(f.log_det);
  return a;
}

template <class S>
MixtureArrays<S> mixture_arrays(const MixtureBackward& f) {
  MixtureArrays<S> a = mixture_inputs<S>(f);
  a.y = static_cast<const S*>(f.y);
  a.grad_y = static_cast<const S*>(f.grad_y);
  a.grad_log_det = static_cast<const compute_t<S>*>(f.grad_log_det);
  a.grad_x = static_cast<S*>(f.grad_x);
  a.grad_logits = static_cast<S*>(f.grad_logits);
  a.grad_means = static_cast<S*>(f.grad_means);
  a.grad_log_scales = static_cast<S*>(f.grad_log_scales);
  return a;
}

// On the GPU a warp takes one part of a row's numbers.
inline SharedChunks mixture_parts(const MixtureSizes& z) { return shared_chunks(z, 512, 8192, 32); }

// Numbers (double) in the workspace of a backward: the sums of each part, [logits | means | log_scales].
inline int64_t mixture_workspace(const MixtureSizes& z, bool on_gpu) {
  if (z.repeats == 1) return 0;
  const SharedChunks chunks = on_gpu ? mixture_parts(z) : shared_chunks(z);
  return !on_gpu && chunks.count == 1 ? 0 : chunks.count * z.all_rows * 3 * z.components;
}

}  // namespace GF_BACKEND
}  // namespace gf
