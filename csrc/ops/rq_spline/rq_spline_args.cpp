#include <stdexcept>

#include "common/shared_rows_args.h"
#include "ops/rq_spline/rq_spline.h"
#include "ops/rq_spline/rq_spline_rows.h"

namespace gf {

namespace {

template <class Args>
void describe_sizes(const Description<Args>& k) {
  k.size(GF(size.groups)), k.size(GF(size.numbers)), k.size(GF(size.rows));
  k.size(GF(size.bins)), k.size(GF(size.slopes)), k.size(GF(size.packed));
  k.type(GF(dtype));
}

template <class Args>
void describe_parameters(const Description<Args>& k) {
  k.tensor(GF(widths), "groups rows bins").optional();
  k.tensor(GF(heights), "groups rows bins").optional();
  k.tensor(GF(slopes), "groups rows slopes").optional();
  k.tensor(GF(params), "groups rows packed").optional();
}

template <class Args>
void describe_options(const Description<Args>& k) {
  k.scalar(GF(size.inner));
  k.scalar(GF(options.left));
  k.scalar(GF(options.right));
  k.scalar(GF(options.bottom));
  k.scalar(GF(options.top));
  k.scalar(GF(options.min_width));
  k.scalar(GF(options.min_height));
  k.scalar(GF(options.min_slope));
  k.scalar(GF(options.tails));
  k.scalar(GF(options.dialect));
  k.scalar(GF(options.inverse));
}

// Slopes that the tails want: linear ones at least so many.
int64_t wanted_slopes(RqTails tails, int64_t bins) {
  return tails == RqTails::linear ? bins - 1 : tails == RqTails::circular ? bins : bins + 1;
}

// Sizes and strides of three tensors of parameters or, where there are no widths, of a packed one.
template <class Args>
bool is_packed(Args& a) {
  const RqTails tails = a.options.tails;
  if (tails < RqTails::linear || tails > RqTails::own || a.options.dialect < RqDialect::nflows ||
      a.options.dialect > RqDialect::pyro)
    throw std::invalid_argument("rq_spline: no such tails or dialect");
  RqSplineSizes& s = a.size;
  const bool packed = check_shared_rows("rq_spline", s, a.params, a.widths && a.heights && (a.slopes || s.slopes == 0),
                                        s.bins, "widths, heights and slopes");
  if (packed) {
    s.bins = (s.packed - wanted_slopes(tails, 0)) / 3;
    s.slopes = s.packed - 2 * s.bins;
    if (s.slopes != wanted_slopes(tails, s.bins))
      throw std::invalid_argument(
          "params: expected rows of 3 K numbers, one less with linear tails, one more with none");
  }
  const int64_t wanted = wanted_slopes(tails, s.bins);
  if (s.bins < 1 || s.bins > (1 << 24) || s.slopes > (1 << 25) ||
      (tails == RqTails::linear ? s.slopes < wanted : s.slopes != wanted))
    throw std::invalid_argument("rq_spline: expected 1 to 2^24 bins, and as many slopes as the tails want");
  s.stride_w = packed ? s.packed : s.bins;
  s.stride_h = packed ? s.packed : s.bins;
  s.stride_d = packed ? s.packed : s.slopes;
  return packed;
}

// Nanoseconds of a call, from those of a number and of a bin of its row; in a shared row, a bin costs less.
double work(const RqSplineSizes& s, double number, double bin) {
  const double rows = static_cast<double>(s.all_rows), numbers = static_cast<double>(s.count);
  return numbers * number + (rows + (numbers - rows) / 16) * bin * s.bins;
}

}  // namespace

GF_KERNEL(rq_spline_forward, RqSplineForward) {
  describe_sizes(k);
  k.tensor(GF(x), "groups numbers");
  describe_parameters(k);
  describe_options(k);
  k.tensor(GF(y), "groups numbers");
  k.tensor(GF(log_det), "groups numbers").sum();
  k.prepare([](Args& a, Backend) {
    if (is_packed(a)) unpack<const char*>(a.params, a.size.bins, a.dtype, &a.widths, &a.heights, &a.slopes);
  });
  k.work([](const Args& a) { return work(a.size, 8, 1.1); });
}

GF_KERNEL(rq_spline_backward, RqSplineBackward) {
  describe_sizes(k);
  k.tensor(GF(x), "groups numbers");
  describe_parameters(k);
  k.tensor(GF(grad_y), "groups numbers");
  k.tensor(GF(grad_log_det), "groups numbers").sum();
  describe_options(k);
  k.tensor(GF(grad_x), "groups numbers");
  k.tensor(GF(grad_widths), "groups rows bins").optional();
  k.tensor(GF(grad_heights), "groups rows bins").optional();
  k.tensor(GF(grad_slopes), "groups rows slopes").optional();
  k.tensor(GF(grad_params), "groups rows packed").optional();
  k.workspace(GF(workspace), DType::f64,
              [](const Args& a, Backend backend) -> int64_t { return rq_workspace(a.size, on_gpu(backend)); });
  k.prepare([](Args& a, Backend) {
    const bool packed = is_packed(a);
    check_packed_alike("rq_spline_backward", a.size, packed, a.grad_params,
                       a.grad_widths && a.grad_heights && (a.grad_slopes || a.size.slopes == 0));
    if (packed) {
      unpack<const char*>(a.params, a.size.bins, a.dtype, &a.widths, &a.heights, &a.slopes);
      unpack<char*>(a.grad_params, a.size.bins, a.dtype, &a.grad_widths, &a.grad_heights, &a.grad_slopes);
    }
  });
  k.work([](const Args& a) { return work(a.size, 8, 3.6); });
}

}  // namespace gf
