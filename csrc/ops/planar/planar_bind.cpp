#include "common/backend.h"
#include "common/chunks.h"
#include "ops/planar/planar.h"

namespace py = pybind11;

namespace gf {

namespace {

PlanarSizes sizes(const Tensor& rows, const Tensor& w) {
  if (rows.ndim != 2 || w.ndim != 2) throw std::invalid_argument("planar: expected [n, d] rows and [k, d] weights");
  return {rows.shape[0], rows.shape[1], w.shape[0]};
}

// Per chunk of rows: gradients of w and u ([k, d] each), of b ([k]), and the sum of c of planar_math.h ([k]).
int64_t workspace_size(const PlanarSizes& s) { return row_chunks(s.n) * (2 * s.k * s.d + 2 * s.k); }

void forward(const Tensor& input, const Tensor& w, const Tensor& u, const Tensor& b, const Tensor& output,
             const Tensor& log_det, const Tensor& a, bool inverse, std::intptr_t stream) {
  const PlanarSizes s = sizes(input, w);
  const DType t = input.dtype, acc = t == DType::f64 ? DType::f64 : DType::f32;
  const int dev = input.device;
  input.expect("input", {s.n, s.d}, t, dev);
  w.expect("w", {s.k, s.d}, t, dev);
  u.expect("u", {s.k, s.d}, t, dev);
  b.expect("b", {s.k}, t, dev);
  output.expect("output", {s.n, s.d}, t, dev);
  log_det.expect("log_det", {s.n}, acc, dev);
  if (a.defined) a.expect("a", {s.k, s.n}, acc, dev);
  const PlanarForward args{s,
                           t,
                           inverse,
                           input.data,
                           w.data,
                           u.data,
                           b.data,
                           output.data,
                           log_det.data,
                           a.data,
                           {reinterpret_cast<void*>(stream), dev}};
  const Backend backend = backend_of(input);
  py::gil_scoped_release release;
  GF_DISPATCH(backend, planar_forward, args);
}

// Whether planar_backward computes `a` anew by itself where tensors lie like t; the GPU kernels want it given.
bool recomputes(const Tensor& t) {
  const Backend backend = backend_of(t);
  return backend != Backend::cuda && backend != Backend::simt;
}

void backward(const Tensor& input, const Tensor& output, const Tensor& a, const Tensor& w, const Tensor& u,
              const Tensor& b, const Tensor& grad_output, const Tensor& grad_log_det, const Tensor& grad_input,
              const Tensor& grad_w, const Tensor& grad_u, const Tensor& grad_b, const Tensor& workspace, bool inverse,
              std::intptr_t stream) {
  const PlanarSizes s = sizes(input, w);
  const DType t = input.dtype, acc = t == DType::f64 ? DType::f64 : DType::f32;
  const int dev = input.device;
  input.expect("input", {s.n, s.d}, t, dev);
  if (a.defined) {
    output.expect("output", {s.n, s.d}, t, dev);
    a.expect("a", {s.k, s.n}, acc, dev);
  } else if (inverse || !recomputes(input)) {
    throw std::invalid_argument("planar_backward: a must be given here");
  }
  w.expect("w", {s.k, s.d}, t, dev);
  u.expect("u", {s.k, s.d}, t, dev);
  b.expect("b", {s.k}, t, dev);
  grad_output.expect("grad_output", {s.n, s.d}, t, dev);
  grad_log_det.expect("grad_log_det", {s.n}, acc, dev);
  grad_input.expect("grad_input", {s.n, s.d}, t, dev);
  grad_w.expect("grad_w", {s.k, s.d}, t, dev);
  grad_u.expect("grad_u", {s.k, s.d}, t, dev);
  grad_b.expect("grad_b", {s.k}, t, dev);
  workspace.expect("workspace", {workspace_size(s)}, acc, dev);
  const PlanarBackward args{s,
                            t,
                            inverse,
                            input.data,
                            output.data,
                            a.defined ? a.data : nullptr,
                            w.data,
                            u.data,
                            b.data,
                            grad_output.data,
                            grad_log_det.data,
                            grad_input.data,
                            grad_w.data,
                            grad_u.data,
                            grad_b.data,
                            workspace.data,
                            {reinterpret_cast<void*>(stream), dev}};
  const Backend backend = backend_of(input);
  py::gil_scoped_release release;
  GF_DISPATCH(backend, planar_backward, args);
}

}  // namespace

void bind_planar(py::module_& m) {
  m.def("planar_forward", &forward, py::kw_only(), py::arg("input"), py::arg("w"), py::arg("u"), py::arg("b"),
        py::arg("output"), py::arg("log_det"), py::arg("a"), py::arg("inverse"), py::arg("stream"));
  m.def("planar_backward", &backward, py::kw_only(), py::arg("input"), py::arg("output"), py::arg("a"), py::arg("w"),
        py::arg("u"), py::arg("b"), py::arg("grad_output"), py::arg("grad_log_det"), py::arg("grad_input"),
        py::arg("grad_w"), py::arg("grad_u"), py::arg("grad_b"), py::arg("workspace"), py::arg("inverse"),
        py::arg("stream"));
  m.def("planar_recomputes", &recomputes, py::arg("like"));
  m.def(
      "planar_workspace", [](int64_t n, int64_t d, int64_t k) { return workspace_size({n, d, k}); }, py::arg("n"),
      py::arg("d"), py::arg("k"));
}

}  // namespace gf
