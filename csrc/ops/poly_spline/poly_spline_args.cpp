#include <stdexcept>

#include "common/kernel.h"
#include "ops/poly_spline/poly_spline.h"

namespace gf {

namespace {

template <class Args>
void describe_options(const Description<Args>& k) {
  k.scalar(GF(options.bins));
  k.scalar(GF(options.left));
  k.scalar(GF(options.right));
  k.scalar(GF(options.bottom));
  k.scalar(GF(options.top));
  k.scalar(GF(options.min_width));
  k.scalar(GF(options.min_height));
  k.scalar(GF(options.kind));
  k.scalar(GF(options.closed));
  k.scalar(GF(options.inverse));
}

template <class Args>
void check(Args& a, Backend) {
  const int64_t bins = a.options.bins, size = a.size;
  if (bins < 1 || bins > kPolyMostBins) throw std::invalid_argument("bins: expected 1 to 1024");
  bool fits = false;
  if (a.options.kind == PolyKind::linear) fits = size == bins;
  if (a.options.kind == PolyKind::quadratic) fits = size == 2 * bins + 1 || (size == 2 * bins - 1 && bins > 1);
  if (a.options.kind == PolyKind::cubic) fits = size == 2 * bins + 2;
  if (!fits) throw std::invalid_argument("params: expected as many numbers a row as the kind of spline wants");
}

template <class Args>
double nanoseconds(const Args& a, double of_a_bin) {
  return static_cast<double>(a.n) * (8 + of_a_bin * static_cast<double>(a.options.bins));
}

}  // namespace

GF_KERNEL(poly_spline_forward, PolySplineForward) {
  k.size(GF(n)), k.size(GF(size));
  k.type(GF(dtype));
  k.tensor(GF(x), "n");
  k.tensor(GF(params), "n size");
  describe_options(k);
  k.tensor(GF(y), "n");
  k.tensor(GF(log_det), "n").sum();
  k.prepare(check<Args>);
  k.work([](const Args& a) { return nanoseconds(a, 1.2); });
}

GF_KERNEL(poly_spline_backward, PolySplineBackward) {
  k.size(GF(n)), k.size(GF(size));
  k.type(GF(dtype));
  k.tensor(GF(x), "n");
  k.tensor(GF(params), "n size");
  k.tensor(GF(grad_y), "n");
  k.tensor(GF(grad_log_det), "n").sum();
  describe_options(k);
  k.tensor(GF(grad_x), "n");
  k.tensor(GF(grad_params), "n size");
  k.prepare(check<Args>);
  k.work([](const Args& a) { return nanoseconds(a, 3); });
}

}  // namespace gf
