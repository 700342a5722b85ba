#include "common/backend.h"
#include "ops/rq_spline/rq_spline.h"

namespace py = pybind11;

namespace gf {

namespace {

// Where the three kinds of parameters, or their gradients, begin.
struct Parts {
  char *widths, *heights, *slopes;
};

int64_t bytes(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }

// Three tensors [n, bins], [n, bins], [n, slopes]; or, without `heights`, one of rows [widths | heights | slopes].
RqSplineSizes sizes(const Tensor& x, const Tensor& widths, const Tensor& heights, const Tensor& slopes) {
  if (x.ndim != 1 || widths.ndim != 2 || (heights.defined && slopes.ndim != 2))
    throw std::invalid_argument("rq_spline: expected [n] numbers and [n, k] parameters");
  const int64_t width = widths.shape[1];
  const int64_t bins = heights.defined ? width : (width + 1) / 3;
  const int64_t knots = heights.defined ? slopes.shape[1] : bins - 1;
  if (bins < 1 || bins > (1 << 24) || knots < bins - 1 || knots > (1 << 25))
    throw std::invalid_argument("rq_spline: expected 1 to 2^24 bins, and at least one slope less");
  if (heights.defined) return {x.shape[0], bins, knots, bins, bins, knots};
  return {x.shape[0], bins, knots, width, width, width};
}

Parts parts(const RqSplineSizes& s, const char* prefix, const Tensor& x, const Tensor& widths, const Tensor& heights,
            const Tensor& slopes) {
  const DType t = x.dtype;
  const std::string name(prefix);
  if (heights.defined) {
    widths.expect((name + "widths").c_str(), {s.n, s.bins}, t, x.device);
    heights.expect((name + "heights").c_str(), {s.n, s.bins}, t, x.device);
    slopes.expect((name + "slopes").c_str(), {s.n, s.slopes}, t, x.device);
    return {static_cast<char*>(widths.data), static_cast<char*>(heights.data), static_cast<char*>(slopes.data)};
  }
  widths.expect((name + "params").c_str(), {s.n, 3 * s.bins - 1}, t, x.device);
  char* row = static_cast<char*>(widths.data);
  return {row, row + s.bins * bytes(t), row + 2 * s.bins * bytes(t)};
}

void forward(const Tensor& x, const Tensor& widths, const Tensor& heights, const Tensor& slopes, const Tensor& y,
             const Tensor& log_det, double bound, double min_width, double min_height, double min_slope, bool inverse,
             std::intptr_t stream) {
  const RqSplineSizes s = sizes(x, widths, heights, slopes);
  const DType t = x.dtype, acc = t == DType::f64 ? DType::f64 : DType::f32;
  const int dev = x.device;
  x.expect("x", {s.n}, t, dev);
  const Parts p = parts(s, "", x, widths, heights, slopes);
  y.expect("y", {s.n}, t, dev);
  log_det.expect("log_det", {s.n}, acc, dev);
  RqSplineForward args{};
  args.size = s;
  args.options = {bound, min_width, min_height, min_slope, inverse};
  args.dtype = t;
  args.x = x.data;
  args.widths = p.widths;
  args.heights = p.heights;
  args.slopes = p.slopes;
  args.y = y.data;
  args.log_det = log_det.data;
  args.stream = {reinterpret_cast<void*>(stream), dev};
  const Backend backend = backend_of(x);
  py::gil_scoped_release release;
  GF_DISPATCH(backend, rq_spline_forward, args);
}

void backward(const Tensor& x, const Tensor& widths, const Tensor& heights, const Tensor& slopes, const Tensor& grad_y,
              const Tensor& grad_log_det, const Tensor& grad_x, const Tensor& grad_widths, const Tensor& grad_heights,
              const Tensor& grad_slopes, double bound, double min_width, double min_height, double min_slope,
              bool inverse, std::intptr_t stream) {
  const RqSplineSizes s = sizes(x, widths, heights, slopes);
  const DType t = x.dtype, acc = t == DType::f64 ? DType::f64 : DType::f32;
  const int dev = x.device;
  x.expect("x", {s.n}, t, dev);
  const Parts p = parts(s, "", x, widths, heights, slopes);
  grad_y.expect("grad_y", {s.n}, t, dev);
  grad_log_det.expect("grad_log_det", {s.n}, acc, dev);
  grad_x.expect("grad_x", {s.n}, t, dev);
  if (grad_heights.defined != heights.defined)
    throw std::invalid_argument("rq_spline: parameters and their gradients must be packed alike");
  const Parts g = parts(s, "grad_", x, grad_widths, grad_heights, grad_slopes);
  RqSplineBackward args{};
  args.size = s;
  args.options = {bound, min_width, min_height, min_slope, inverse};
  args.dtype = t;
  args.x = x.data;
  args.widths = p.widths;
  args.heights = p.heights;
  args.slopes = p.slopes;
  args.grad_y = grad_y.data;
  args.grad_log_det = grad_log_det.data;
  args.grad_x = grad_x.data;
  args.grad_widths = g.widths;
  args.grad_heights = g.heights;
  args.grad_slopes = g.slopes;
  args.stream = {reinterpret_cast<void*>(stream), dev};
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
