#include <tuple>

#include "common/backend.h"
#include "ops/coupling/coupling.h"

namespace py = pybind11;

namespace gf {

namespace {

// Offset, row stride and column stride of a matrix inside a flat tensor, in elements.
using Place = std::tuple<int64_t, int64_t, int64_t>;

char* element(const Tensor& t, const char* name, const Place& at, int64_t n, int64_t d, DType dtype, int device) {
  const int64_t offset = std::get<0>(at), row = std::get<1>(at), col = std::get<2>(at);
  if (!t.defined || t.dtype != dtype || t.device != device)
    throw std::invalid_argument(std::string(name) + ": expected dtype and device of the input, got " +
                                (t.defined ? t.describe() : std::string("None")));
  const bool inside =
      offset >= 0 && row >= 0 && col >= 0 && (n == 0 || d == 0 || offset + (n - 1) * row + (d - 1) * col < t.numel());
  if (!inside) throw std::invalid_argument(std::string(name) + ": strides reach past the end of " + t.describe());
  const int64_t bytes = dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
  return static_cast<char*>(t.data) + offset * bytes;
}

ScaleSpec spec_of(const std::tuple<int, double, double, double, double, double>& s) {
  const int map = std::get<0>(s);
  if (map < 0 || map >= kScaleMaps) throw std::invalid_argument("scale: no such scale map");
  return {static_cast<ScaleMap>(map), std::get<1>(s), std::get<2>(s), std::get<3>(s), std::get<4>(s), std::get<5>(s)};
}
using Spec = std::tuple<int, double, double, double, double, double>;

void forward(const Tensor& x, const Place& x_at, const Tensor& shift, const Place& shift_at, const Tensor& scale,
             const Place& scale_at, const Tensor& y, const Tensor& log_det, const Spec& spec, bool inverse,
             std::intptr_t stream) {
  if (y.ndim != 2) throw std::invalid_argument("y: expected [n, d]");
  const int64_t n = y.shape[0], d = y.shape[1];
  const DType t = y.dtype, acc = t == DType::f64 ? DType::f64 : DType::f32;
  const int dev = y.device;
  const auto strided = [&](const Tensor& m, const char* name, const Place& at) {
    return Strided{element(m, name, at, n, d, t, dev), std::get<1>(at), std::get<2>(at)};
  };
  log_det.expect("log_det", {n}, acc, dev);
  const CouplingForward args{n,
                             d,
                             t,
                             inverse,
                             spec_of(spec),
                             strided(x, "x", x_at),
                             strided(shift, "shift", shift_at),
                             strided(scale, "scale", scale_at),
                             y.data,
                             log_det.data,
                             {reinterpret_cast<void*>(stream), dev}};
  if (n == 0 || d == 0) return;
  const Backend backend = backend_of(y);
  py::gil_scoped_release release;
  GF_DISPATCH(backend, coupling_forward, args);
}

void backward(const Tensor& grad_y, const Place& grad_y_at, const Tensor& grad_log_det, int64_t grad_log_det_row,
              const Tensor& kept, const Place& kept_at, const Tensor& scale, const Place& scale_at,
              const Tensor& grad_x, const Tensor& grad_shift, const Place& grad_shift_at, const Tensor& grad_scale,
              const Place& grad_scale_at, const Spec& spec, bool inverse, std::intptr_t stream) {
  if (grad_x.ndim != 2) throw std::invalid_argument("grad_x: expected [n, d]");
  const int64_t n = grad_x.shape[0], d = grad_x.shape[1];
  const DType t = grad_x.dtype, acc = t == DType::f64 ? DType::f64 : DType::f32;
  const int dev = grad_x.device;
  const auto strided = [&](const Tensor& m, const char* name, const Place& at) {
    return Strided{element(m, name, at, n, d, t, dev), std::get<1>(at), std::get<2>(at)};
  };
  const auto strided_out = [&](const Tensor& m, const char* name, const Place& at) {
    return StridedOut{element(m, name, at, n, d, t, dev), std::get<1>(at), std::get<2>(at)};
  };
  const Place l_at{0, grad_log_det_row, 0};
  const CouplingBackward args{
      n,
      d,
      t,
      inverse,
      spec_of(spec),
      strided(grad_y, "grad_y", grad_y_at),
      {element(grad_log_det, "grad_log_det", l_at, n, 1, acc, dev), grad_log_det_row, 0},
      strided(kept, "kept", kept_at),
      strided(scale, "scale", scale_at),
      grad_x.data,
      grad_shift.defined ? strided_out(grad_shift, "grad_shift", grad_shift_at) : StridedOut{nullptr, 0, 0},
      strided_out(grad_scale, "grad_scale", grad_scale_at),
      {reinterpret_cast<void*>(stream), dev}};
  if (n == 0 || d == 0) return;
  const Backend backend = backend_of(grad_x);
  py::gil_scoped_release release;
  GF_DISPATCH(backend, coupling_backward, args);
}

}  // namespace

void bind_coupling(py::module_& m) {
  m.def("coupling_forward", &forward, py::kw_only(), py::arg("x"), py::arg("x_at"), py::arg("shift"),
        py::arg("shift_at"), py::arg("scale"), py::arg("scale_at"), py::arg("y"), py::arg("log_det"), py::arg("spec"),
        py::arg("inverse"), py::arg("stream"));
  m.def("coupling_backward", &backward, py::kw_only(), py::arg("grad_y"), py::arg("grad_y_at"), py::arg("grad_log_det"),
        py::arg("grad_log_det_row"), py::arg("kept"), py::arg("kept_at"), py::arg("scale"), py::arg("scale_at"),
        py::arg("grad_x"), py::arg("grad_shift"), py::arg("grad_shift_at"), py::arg("grad_scale"),
        py::arg("grad_scale_at"), py::arg("spec"), py::arg("inverse"), py::arg("stream"));
}

}  // namespace gf
