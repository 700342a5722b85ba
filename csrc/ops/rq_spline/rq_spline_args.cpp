#include <stdexcept>

#include "common/kernel.h"
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

// The parts [widths | heights | slopes] of packed rows. Pointer is char of the constness of the parameters.
template <class Pointer, class Parameters>
void unpack(Parameters packed, int64_t bins, DType dtype, Parameters* widths, Parameters* heights, Parameters* slopes) {
  *widths = packed;
  *heights = static_cast<Pointer>(packed) + bins * size_of(dtype);
  *slopes = static_cast<Pointer>(packed) + 2 * bins * size_of(dtype);
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
  const bool packed = s.packed > 0, three = a.widths && a.heights && (a.slopes || s.slopes == 0);
  s.count = s.groups * s.numbers;
  s.all_rows = s.groups * s.rows;
  if (s.all_rows > 0 ? (a.params != nullptr) == three : !packed && s.bins < 1)
    throw std::invalid_argument("rq_spline: expected widths, heights and slopes, or params");
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
  if (s.inner < 1 || (s.rows > 0 ? s.numbers % (s.rows * s.inner) : s.numbers) != 0)
    throw std::invalid_argument("rq_spline: expected numbers in whole runs of `inner` for each row of parameters");
  if (s.rows == 1 && s.numbers > 0) s.inner = s.numbers;
  s.repeats = s.rows > 0 ? s.numbers / s.rows : 0;
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
    const bool three = a.grad_widths && a.grad_heights && (a.grad_slopes || a.size.slopes == 0);
    if (a.size.all_rows > 0 && (packed == three || packed != (a.grad_params != nullptr)))
      throw std::invalid_argument("rq_spline_backward: parameters and their gradients must be packed alike");
    if (packed) {
      unpack<const char*>(a.params, a.size.bins, a.dtype, &a.widths, &a.heights, &a.slopes);
      unpack<char*>(a.grad_params, a.size.bins, a.dtype, &a.grad_widths, &a.grad_heights, &a.grad_slopes);
    }
  });
  k.work([](const Args& a) { return work(a.size, 8, 3.6); });
}

}  // namespace gf
