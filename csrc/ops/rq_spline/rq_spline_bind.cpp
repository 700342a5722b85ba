#include "common/backend.h"
#include "ops/rq_spline/rq_spline.h"

namespace py = pybind11;

namespace gf {

namespace {

RqSplineSizes sizes(const Tensor& x, const Tensor& widths, const Tensor& slopes) {
  if (x.ndim != 1 || widths.ndim != 2 || slopes.ndim != 2)
    throw std::invalid_argument("rq_spline: expected [n] numbers and [n, k] parameters");
  const int64_t bins = widths.shape[1], knots = slopes.shape[1];
  if (bins < 1 || bins > (1 << 24) || knots < bins - 1 || knots > (1 << 25))
    throw std::invalid_argument("rq_spline: expected 1 to 2^24 bins, and at least one slope less");
  return {x.shape[0], bins, knots, bins, bins, knots};
}

void forward(const Tensor& x, const Tensor& widths, const Tensor& heights, const Tensor& slopes, const Tensor& y,
             const Tensor& log_det, double bound, double min_width, double min_height, double min_slope, bool inverse,
             std::intptr_t stream) {
  const RqSplineSizes s = sizes(x, widths, slopes);
  const DType t = x.dtype, acc = t == DType::f64 ? DType::f64 : DType::f32;
  const int dev = x.device;
  x.expect("x", {s.n}, t, dev);
  widths.expect("widths", {s.n, s.bins}, t, dev);
  heights.expect("heights", {s.n, s.bins}, t, dev);
  slopes.expect("slopes", {s.n, s.slopes}, t, dev);
  y.expect("y", {s.n}, t, dev);
  log_det.expect("log_det", {s.n}, acc, dev);
  const RqSplineForward args{s,
                             {bound, min_width, min_height, min_slope, inverse},
                             t,
                             x.data,
                             widths.data,
                             heights.data,
                             slopes.data,
                             y.data,
                             log_det.data,
                             {reinterpret_cast<void*>(stream), dev}};
  const Backend backend = backend_of(x);
  py::gil_scoped_release release;
  GF_DISPATCH(backend, rq_spline_forward, args);
}

void backward(const Tensor& x, const Tensor& widths, const Tensor& heights, const Tensor& slopes, const Tensor& grad_y,
              const Tensor& grad_log_det, const Tensor& grad_x, const Tensor& grad_widths, const Tensor& grad_heights,
              const Tensor& grad_slopes, double bound, double min_width, double min_height, double min_slope,
              bool inverse, std::intptr_t stream) {
  const RqSplineSizes s = sizes(x, widths, slopes);
  const DType t = x.dtype, acc = t == DType::f64 ? DType::f64 : DType::f32;
  const int dev = x.device;
  x.expect("x", {s.n}, t, dev);
  widths.expect("widths", {s.n, s.bins}, t, dev);
  heights.expect("heights", {s.n, s.bins}, t, dev);
  slopes.expect("slopes", {s.n, s.slopes}, t, dev);
  grad_y.expect("grad_y", {s.n}, t, dev);
  grad_log_det.expect("grad_log_det", {s.n}, acc, dev);
  grad_x.expect("grad_x", {s.n}, t, dev);
  grad_widths.expect("grad_widths", {s.n, s.bins}, t, dev);
  grad_heights.expect("grad_heights", {s.n, s.bins}, t, dev);
  grad_slopes.expect("grad_slopes", {s.n, s.slopes}, t, dev);
  const RqSplineBackward args{s,
                              {bound, min_width, min_height, min_slope, inverse},
                              t,
                              x.data,
                              widths.data,
                              heights.data,
                              slopes.data,
                              grad_y.data,
                              grad_log_det.data,
                              grad_x.data,
                              grad_widths.data,
                              grad_heights.data,
                              grad_slopes.data,
                              {reinterpret_cast<void*>(stream), dev}};
  const Backend backend = backend_of(x);
  py::gil_scoped_release release;
  GF_DISPATCH(backend, rq_spline_backward, args);
}

}  // namespace

void bind_rq_spline(py::module_& m) {
  m.def("rq_spline_forward", &forward, py::kw_only(), py::arg("x"), py::arg("widths"), py::arg("heights"),
        py::arg("slopes"), py::arg("y"), py::arg("log_det"), py::arg("bound"), py::arg("min_width"),
        py::arg("min_height"), py::arg("min_slope"), py::arg("inverse"), py::arg("stream"));
  m.def("rq_spline_backward", &backward, py::kw_only(), py::arg("x"), py::arg("widths"), py::arg("heights"),
        py::arg("slopes"), py::arg("grad_y"), py::arg("grad_log_det"), py::arg("grad_x"), py::arg("grad_widths"),
        py::arg("grad_heights"), py::arg("grad_slopes"), py::arg("bound"), py::arg("min_width"), py::arg("min_height"),
        py::arg("min_slope"), py::arg("inverse"), py::arg("stream"));
}

}  // namespace gf
