// The gradient of a row of parameters that several numbers read.
//
// A bin's numbers share its knots, so their gradients reach the row through six sums a bin, those of the cotangents of
// RqAdjoint; the softmax and the slopes are differentiated once a row.
#pragma once

#include "ops/rq_spline/rq_spline_math.h"
#include "ops/rq_spline/rq_spline_rows.h"

// Long loops of few threads: not worth the registers of several rounds at once.
#if defined(__CUDACC__)
#define RQ_ROLLED _Pragma("unroll 1")
#else
#define RQ_ROLLED
#endif

namespace gf {
inline namespace GF_BACKEND {

// Exponentials of a row of logits that are computed whenever they are asked for.
template <class S>
struct LazyExponentials {
  using T = compute_t<S>;
  const S* logits;
  T top, clip;  // the latter 0, or that of zuko's dialect
  GF_HD T operator[](int j) const {
    T w = to_real(logits[j]);
    if (clip != 0) rq_soft_clip(&w, clip);
    return exp(w - top);
  }
  // By which the gradient of a clipped logit is multiplied to that of the logit.
  GF_HD T clip_derivative(int j) const {
    if (clip == 0) return 1;
    T w = to_real(logits[j]);
    const T s = rq_soft_clip(&w, clip);
    return s * s;
  }
};

// Also gives the reciprocal of their sum.
template <class S, class T = compute_t<S>>
GF_HD LazyExponentials<S> rq_lazy_exponentials(const S* logits, int bins, T clip, T* r) {
  LazyExponentials<S> e{logits, to_real(logits[0]), clip};
  for (int j = 1; j < bins; ++j) e.top = max(e.top, to_real(logits[j]));
  if (clip != 0) rq_soft_clip(&e.top, clip);
  T sum = 0;
  for (int j = 0; j < bins; ++j) sum += e[j];
  *r = T(1) / sum;
  return e;
}

// The gradient of one axis' logits; `sums` begins with that of its left knots. `free`: of RqConstants, times the unit.
template <class S, class T = compute_t<S>>
GF_HD void rq_logit_gradients(const S* logits, const double* sums, double free, const RqConstants<T>& c, S* grad) {
  T r;
  const LazyExponentials<S> e = rq_lazy_exponentials(logits, c.bins, c.clip_logits, &r);
  double total = 0, mean = 0, after = 0;
  RQ_ROLLED
  for (int j = c.bins - 1; j >= 0; --j) {
    const double one = e[j];
    total += one;
    mean += one * (after + sums[j * kRqSums + 1]);
    after += sums[j * kRqSums];
  }
  mean /= total;
  const double length = free / total;
  after = 0;
  RQ_ROLLED
  for (int j = c.bins - 1; j >= 0; --j) {
    const double slope = e[j] * length * e.clip_derivative(j);
    grad[j] = from_real<S>(static_cast<T>(slope * (after + sums[j * kRqSums + 1] - mean)));
    after += sums[j * kRqSums];
  }
}

template <class S, class T = compute_t<S>>
GF_HD void rq_slope_gradients(const S* raw, const double* sums, int slopes, const RqConstants<T>& c, S* grad) {
  RQ_ROLLED
  for (int j = 0; j < slopes; ++j) {
    const int right = j - c.first_slope, left = right - 1;  // the bins on both sides of its knot
    double sum = left >= 0 && left < c.bins ? sums[left * kRqSums + 5] : 0;
    if (right < c.bins) sum += sums[right * kRqSums + 4];
    if (c.circular && j == 0) sum += sums[(c.bins - 1) * kRqSums + 5];
    // a slope that no number reads has no gradient, not even a NaN
    grad[j] = from_real<S>(sum == 0 ? T(0) : static_cast<T>(sum * rq_slope(to_real(raw[j]), false, c).derivative));
  }
}

}  // namespace GF_BACKEND
}  // namespace gf
