// The extension module: what was built, which instruction set is in use, and the kernels that describe themselves.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "common/backend.h"
#include "common/binding.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace py = pybind11;

namespace gf {

extern const char kSourceHash[];  // written by cmake/source_hash.cmake

namespace {

struct Variant {
  const char* name;
  Backend backend;
  bool built, runs_here;
};

std::vector<Variant> variants() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  const bool has_avx2 = false, has_avx512 = false;
#endif
  std::vector<Variant> v{{"baseline", Backend::baseline, true, true}};
#if defined(GF_HAVE_AVX2)
  v.push_back({"avx2", Backend::avx2, true, has_avx2});
#endif
#if defined(GF_HAVE_AVX512)
  v.push_back({"avx512", Backend::avx512, true, has_avx512});
#endif
#if defined(GF_HAVE_SIMT)
  v.push_back({"simt", Backend::simt, true, true});
#endif
  (void)has_avx2;
  (void)has_avx512;
  return v;
}

Variant best_variant() {
  Variant best{};
  for (const Variant& v : variants())
    if (v.runs_here && v.backend != Backend::simt) best = v;
  return best;
}

Variant& target() {
  static Variant current = best_variant();
  return current;
}

void set_cpu_target(const std::string& name) {
  if (name == "auto") {
    target() = best_variant();
    return;
  }
  std::string known;
  for (const Variant& v : variants()) {
    if (name == v.name && v.runs_here) {
      target() = v;
      return;
    }
    known += (known.empty() ? "" : ", ") + std::string(v.name) + (v.runs_here ? "" : " (not on this processor)");
  }
  throw std::invalid_argument("CPU target '" + name + "' cannot be used here; this build has: auto, " + known);
}

py::dict build_info() {
  py::dict d;
  py::list cpu;
  for (const Variant& v : variants())
    if (v.runs_here) cpu.append(v.name);
  d["cpu_targets"] = cpu;
  d["cpu_target"] = target().name;
  d["compiler"] = GF_COMPILER;
  d["sources"] = static_cast<const char*>(kSourceHash);
#if defined(GF_HAVE_CUDA)
  d["cuda"] = true;
#else
  d["cuda"] = false;
#endif
  d["cuda_archs"] = GF_CUDA_ARCHS;
  d["cuda_compiler"] = GF_CUDA_COMPILER;
#if defined(_OPENMP)
  d["openmp"] = true;
  d["threads"] = omp_get_max_threads();
#else
  d["openmp"] = false;
  d["threads"] = 1;
#endif
  return d;
}

}  // namespace

Backend cpu_target() { return target().backend; }

}  // namespace gf

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &gf::build_info);
  m.def("set_cpu_target", &gf::set_cpu_target, py::arg("name"));
  m.def("set_keep_workspaces", &gf::set_keep_workspaces, py::arg("keep"));
  m.def("set_read_attributes", &gf::set_read_attributes, py::arg("read"));
  PyObject* kernels = gf::add_kernels(m.ptr());
  if (kernels == nullptr) throw py::error_already_set();
  m.def(
      "kernels", [all = py::reinterpret_steal<py::dict>(kernels)] { return all; },
      "The names of the kernels, and of each the names of its arguments in the order of a call.");
}
