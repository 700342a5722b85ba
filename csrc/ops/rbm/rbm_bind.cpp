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

}  // namespace

void bind_rbm(py::module_& m) {
  m.def("rbm_gibbs", &gibbs, py::kw_only(), py::arg("v"), py::arg("W"), py::arg("vbias"), py::arg("hbias"),
        py::arg("beta"), py::arg("clamp"), py::arg("seed"), py::arg("out_v"), py::arg("out_h"), py::arg("status"),
        py::arg("workspace"), py::arg("n_steps"), py::arg("first_chain"), py::arg("first_step"), py::arg("stream"));
  m.def(
      "rbm_gibbs_workspace", [](int64_t n, int64_t nv, int64_t nh) { return RbmWorkspace({n, nv, nh}).total; },
      py::arg("n"), py::arg("nv"), py::arg("nh"));
}

}  // namespace gf
