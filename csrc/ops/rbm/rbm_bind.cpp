#include "common/backend.h"
#include "ops/rbm/rbm.h"

namespace py = pybind11;

namespace gf {

namespace {

void gibbs(const Tensor& v, const Tensor& W, const Tensor& vbias, const Tensor& hbias, const Tensor& beta,
           const Tensor& clamp, const Tensor& seed, const Tensor& out_v, const Tensor& out_h, const Tensor& status,
           const Tensor& workspace, int64_t n_steps, int64_t first_chain, int64_t first_step, std::intptr_t stream) {
  if (v.ndim != 2 || W.ndim != 2) throw std::invalid_argument("rbm: expected v [n, nv] and W [nv, nh]");
  const RbmSizes s{v.shape[0], v.shape[1], W.shape[1]};
  const int dev = v.device;
  if (W.dtype != DType::f32 && W.dtype != DType::f64) throw std::invalid_argument("rbm: W is float32 or float64");
  if (v.dtype == DType::other) throw std::invalid_argument("rbm: no kernel for states of this dtype");
  v.expect("v", {s.n, s.nv}, v.dtype, dev);
  W.expect("W", {s.nv, s.nh}, W.dtype, dev);
  vbias.expect("vbias", {s.nv}, W.dtype, dev);
  hbias.expect("hbias", {s.nh}, W.dtype, dev);
  const bool beta_per_chain = beta.ndim == 1 && beta.shape[0] != 1;
  beta.expect("beta", {beta_per_chain ? s.n : 1}, DType::f32, dev);
  const bool clamp_per_chain = clamp.defined && clamp.ndim == 2;
  if (clamp_per_chain) clamp.expect("clamp", {s.n, s.nv}, DType::b8, dev);
  if (clamp.defined && !clamp_per_chain) clamp.expect("clamp", {s.nv}, DType::b8, dev);
  seed.expect("seed", {}, DType::i64, dev);
  out_v.expect("out_v", {s.n, s.nv}, v.dtype, dev);
  out_h.expect("out_h", {s.n, s.nh}, v.dtype, dev);
  status.expect("status", {1}, DType::i32, dev);
  workspace.expect("workspace", {RbmWorkspace(s).total}, DType::i32, dev);
  const RbmGibbs args{s,
                      v.dtype,
                      W.dtype,
                      n_steps,
                      static_cast<uint32_t>(first_chain),
                      static_cast<uint32_t>(first_step),
                      v.data,
                      W.data,
                      vbias.data,
                      hbias.data,
                      static_cast<const float*>(beta.data),
                      beta_per_chain,
                      static_cast<const uint8_t*>(clamp.data),
                      clamp_per_chain,
                      static_cast<const int64_t*>(seed.data),
                      out_v.data,
                      out_h.data,
                      static_cast<int32_t*>(status.data),
                      static_cast<int32_t*>(workspace.data),
                      {reinterpret_cast<void*>(stream), dev}};
  const Backend backend = backend_of(v);
  py::gil_scoped_release release;
  GF_DISPATCH(backend, rbm_gibbs, args);
}

void free_energy(const Tensor& v, const Tensor& vbias, const Tensor& fields, const Tensor& energy,
                 std::intptr_t stream) {
  if (v.ndim != 2 || fields.ndim != 2) throw std::invalid_argument("rbm: expected v [n, nv] and fields [n, nh]");
  const RbmSizes s{v.shape[0], v.shape[1], fields.shape[1]};
  const int dev = v.device;
  if (v.dtype != DType::f32 && v.dtype != DType::f64) throw std::invalid_argument("rbm: v is float32 or float64");
  v.expect("v", {s.n, s.nv}, v.dtype, dev);
  vbias.expect("vbias", {s.nv}, v.dtype, dev);
  fields.expect("fields", {s.n, s.nh}, v.dtype, dev);
  energy.expect("energy", {s.n}, v.dtype, dev);
  const RbmFreeEnergy args{
      s, v.dtype, v.data, vbias.data, fields.data, energy.data, {reinterpret_cast<void*>(stream), dev}};
  const Backend backend = backend_of(v);
  py::gil_scoped_release release;
  GF_DISPATCH(backend, rbm_free_energy, args);
}

bool sparse_product(const Tensor& left, const Tensor& scale, const Tensor& right, const Tensor& init, const Tensor& out,
                    bool transposed, std::intptr_t stream) {
  if (left.ndim != 2 || right.ndim != 2) throw std::invalid_argument("rbm: expected matrices");
  const int64_t rows = left.shape[transposed ? 1 : 0], inner = left.shape[transposed ? 0 : 1];
  const int64_t columns = right.shape[1];
  const int dev = left.device;
  left.expect("left", {left.shape[0], left.shape[1]}, DType::f32, dev);
  right.expect("right", {inner, columns}, DType::f32, dev);
  if (scale.defined) scale.expect("scale", {inner}, DType::f32, dev);
  if (init.defined) init.expect("init", {columns}, DType::f32, dev);
  out.expect("out", {rows, columns}, DType::f32, dev);
  const RbmSparseProduct args{rows,
                              inner,
                              columns,
                              static_cast<const float*>(left.data),
                              transposed,
                              static_cast<const float*>(scale.data),
                              static_cast<const float*>(right.data),
                              static_cast<const float*>(init.data),
                              static_cast<float*>(out.data),
                              {reinterpret_cast<void*>(stream), dev}};
  const Backend backend = backend_of(left);
  py::gil_scoped_release release;
  return GF_DISPATCH(backend, rbm_sparse_product, args);
}

}  // namespace

void bind_rbm(py::module_& m) {
  m.def("rbm_free_energy", &free_energy, py::kw_only(), py::arg("v"), py::arg("vbias"), py::arg("fields"),
        py::arg("energy"), py::arg("stream"));
  m.def("rbm_sparse_product", &sparse_product, py::kw_only(), py::arg("left"), py::arg("scale"), py::arg("right"),
        py::arg("init"), py::arg("out"), py::arg("transposed"), py::arg("stream"));
  m.def("rbm_gibbs", &gibbs, py::kw_only(), py::arg("v"), py::arg("W"), py::arg("vbias"), py::arg("hbias"),
        py::arg("beta"), py::arg("clamp"), py::arg("seed"), py::arg("out_v"), py::arg("out_h"), py::arg("status"),
        py::arg("workspace"), py::arg("n_steps"), py::arg("first_chain"), py::arg("first_step"), py::arg("stream"));
  m.def(
      "rbm_gibbs_workspace", [](int64_t n, int64_t nv, int64_t nh) { return RbmWorkspace({n, nv, nh}).total; },
      py::arg("n"), py::arg("nv"), py::arg("nh"));
}

}  // namespace gf
