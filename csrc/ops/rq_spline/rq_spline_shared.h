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
  T top;
  GF_HD T operator[](int j) const { return exp(to_real(logits[j]) - top); }
};

// Also gives the reciprocal of their sum.
template <class S, class T = compute_t<S>>
GF_HD LazyExponentials<S> rq_lazy_exponentials(const S* logits, int bins, T* r) {
  LazyExponentials<S> e{logits, to_real(logits[0])};
  for (int j = 1; j < bins; ++j) e.top = max(e.top, to_real(logits[j]));
  T sum = 0;
  for (int j = 0; j < bins; ++j) sum += e[j];
  *r = T(1) / sum;
  return e;
}

// The gradient of one axis' logits; `sums` begins with that of its left knots. `free`: of RqConstants.
template <class S, class T = compute_t<S>>
GF_HD void rq_logit_gradients(const S* logits, const double* sums, T free, const RqConstants<T>& c, S* grad) {
  T r;
  const LazyExponentials<S> e = rq_lazy_exponentials(logits, c.bins, &r);
  double total = 0, mean = 0, after = 0;
  RQ_ROLLED
  for (int j = c.bins - 1; j >= 0; --j) {
    const double one = e[j];
    total += one;
    mean += one * (after + sums[j * kRqSums + 1]);
    after += sums[j * kRqSums];
  }
  mean /= total;
  const double length = free * (2 * c.axis.wide_bound / RqUnits<T>::kAxis) / total;
  after = 0;
  RQ_ROLLED
  for (int j = c.bins - 1; j >= 0; --j) {
    grad[j] = from_real<S>(static_cast<T>(e[j] * length * (after + sums[j * kRqSums + 1] - mean)));
    after += sums[j * kRqSums];
  }
}

template <class S, class T = compute_t<S>>
GF_HD void rq_slope_gradients(const S* raw, const double* sums, int slopes, const RqConstants<T>& c, S* grad) {
  RQ_ROLLED
  for (int j = 0; j < slopes; ++j) {
    double sum = j < c.bins ? sums[j * kRqSums + 5] : 0;
    if (j + 1 < c.bins) sum += sums[(j + 1) * kRqSums + 4];
    // a slope that no number reads has no gradient, not even a NaN
    grad[j] = from_real<S>(sum == 0 ? T(0) : static_cast<T>(sum * rq_slope(to_real(raw[j]), false, c).derivative));
  }
}

}  // namespace GF_BACKEND
}  // namespace gf
