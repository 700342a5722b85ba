// The arrays of a spline's call in their types; what a direction does not have is null.
#pragma once

#include "ops/rq_spline/rq_spline.h"

namespace gf {
inline namespace GF_BACKEND {

template <class S>
struct Arrays {
  using T = compute_t<S>;
  const S *x, *w, *h, *d, *grad_y;
  const T* grad_log_det;
  S* y;
  T* log_det;
  S *grad_x, *grad_w, *grad_h, *grad_d;
};

template <class S, class F>
Arrays<S> inputs(const F& f) {
  Arrays<S> a{};
  a.x = static_cast<const S*>(f.x);
  a.w = static_cast<const S*>(f.widths);
  a.h = static_cast<const S*>(f.heights);
  a.d = static_cast<const S*>(f.slopes);
  return a;
}

template <class S>
Arrays<S> arrays(const RqSplineForward& f) {
  Arrays<S> a = inputs<S>(f);
  a.y = static_cast<S*>(f.y);
  a.log_det = static_cast<compute_t<S>*>(f.log_det);
  return a;
}

template <class S>
Arrays<S> arrays(const RqSplineBackward& f) {
  Arrays<S> a = inputs<S>(f);
  a.grad_y = static_cast<const S*>(f.grad_y);
  a.grad_log_det = static_cast<const compute_t<S>*>(f.grad_log_det);
  a.grad_x = static_cast<S*>(f.grad_x);
  a.grad_w = static_cast<S*>(f.grad_widths);
  a.grad_h = static_cast<S*>(f.grad_heights);
  a.grad_d = static_cast<S*>(f.grad_slopes);
  return a;
}

}  // namespace GF_BACKEND
}  // namespace gf
