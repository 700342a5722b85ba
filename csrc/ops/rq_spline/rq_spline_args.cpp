#include <stdexcept>

#include "common/kernel.h"
#include "ops/rq_spline/rq_spline.h"

namespace gf {

namespace {

template <class Args>
void describe_options(const Description<Args>& k) {
  k.scalar(GF(options.bound));
  k.scalar(GF(options.min_width));
  k.scalar(GF(options.min_height));
  k.scalar(GF(options.min_slope));
  k.scalar(GF(options.inverse));
}

// The parts [widths | heights | slopes] of packed rows. Pointer is char of the constness of the parameters.
template <class Pointer, class Parameters>
void unpack(Parameters packed, int64_t bins, DType dtype, Parameters* widths, Parameters* heights, Parameters* slopes) {
  *widths = packed;
  *heights = static_cast<Pointer>(packed) + bins * size_of(dtype);
  *slopes = static_cast<Pointer>(packed) + 2 * bins * size_of(dtype);
}

// Sizes and strides of three tensors of parameters or, where there are no widths, of a packed one.
template <class Args>
bool is_packed(Args& a) {
  RqSplineSizes& s = a.size;
  const bool packed = s.packed > 0, three = a.widths && a.heights && (a.slopes || s.slopes == 0);
  if (s.n > 0 && packed == three)
    throw std::invalid_argument("rq_spline: expected widths, heights and slopes, or params");
  if (packed) {
    s.bins = (s.packed + 1) / 3;
    s.slopes = s.bins - 1;
    if (s.packed != 3 * s.bins - 1) throw std::invalid_argument("params: expected rows of 3 K - 1 numbers");
  }
  if (s.bins < 1 || s.bins > (1 << 24) || s.slopes < s.bins - 1 || s.slopes > (1 << 25))
    throw std::invalid_argument("rq_spline: expected 1 to 2^24 bins, and no fewer slopes than inner knots");
  s.stride_w = packed ? s.packed : s.bins;
  s.stride_h = packed ? s.packed : s.bins;
  s.stride_d = packed ? s.packed : s.slopes;
  return packed;
}

}  // namespace

GF_KERNEL(rq_spline_forward, RqSplineForward) {
  k.size(GF(size.n)), k.size(GF(size.bins)), k.size(GF(size.slopes)), k.size(GF(size.packed));
  k.type(GF(dtype));
  k.tensor(GF(x), "n");
  k.tensor(GF(widths), "n bins").optional();
  k.tensor(GF(heights), "n bins").optional();
  k.tensor(GF(slopes), "n slopes").optional();
  k.tensor(GF(params), "n packed").optional();
  describe_options(k);
  k.tensor(GF(y), "n");
  k.tensor(GF(log_det), "n").sum();
  k.prepare([](Args& a, Backend) {
    if (is_packed(a)) unpack<const char*>(a.params, a.size.bins, a.dtype, &a.widths, &a.heights, &a.slopes);
  });
  k.work([](const Args& a) { return static_cast<double>(a.size.n) * (8 + 1.1 * a.size.bins); });
}

GF_KERNEL(rq_spline_backward, RqSplineBackward) {
  k.size(GF(size.n)), k.size(GF(size.bins)), k.size(GF(size.slopes)), k.size(GF(size.packed));
  k.type(GF(dtype));
  k.tensor(GF(x), "n");
  k.tensor(GF(widths), "n bins").optional();
  k.tensor(GF(heights), "n bins").optional();
  k.tensor(GF(slopes), "n slopes").optional();
  k.tensor(GF(params), "n packed").optional();
  k.tensor(GF(grad_y), "n");
  k.tensor(GF(grad_log_det), "n").sum();
  describe_options(k);
  k.tensor(GF(grad_x), "n");
  k.tensor(GF(grad_widths), "n bins").optional();
  k.tensor(GF(grad_heights), "n bins").optional();
  k.tensor(GF(grad_slopes), "n slopes").optional();
  k.tensor(GF(grad_params), "n packed").optional();
  k.prepare([](Args& a, Backend) {
    const bool packed = is_packed(a);
    const bool three = a.grad_widths && a.grad_heights && (a.grad_slopes || a.size.slopes == 0);
    if (a.size.n > 0 && (packed == three || packed != (a.grad_params != nullptr)))
      throw std::invalid_argument("rq_spline_backward: parameters and their gradients must be packed alike");
    if (packed) {
      unpack<const char*>(a.params, a.size.bins, a.dtype, &a.widths, &a.heights, &a.slopes);
      unpack<char*>(a.grad_params, a.size.bins, a.dtype, &a.grad_widths, &a.grad_heights, &a.grad_slopes);
    }
  });
  k.work([](const Args& a) { return static_cast<double>(a.size.n) * (8 + 3.6 * a.size.bins); });
}

}  // namespace gf
