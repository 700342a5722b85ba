// A torch tensor as it crosses the binding. torch's headers stay outside: pybind11 hands over the Python object, and
// the few facts a kernel needs are read from its public attributes (about half a microsecond a tensor).
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "dtype.h"
#include "stream.h"

namespace gf {

struct Tensor {
  static constexpr int kMaxDim = 8;
  void* data = nullptr;
  int64_t shape[kMaxDim] = {};
  int ndim = 0;
  DType dtype = DType::other;
  int device = -1;  // CUDA device index; -1: the CPU
  bool defined = false;

  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < ndim; ++i) n *= shape[i];
    return n;
  }

  std::string describe() const {
    static constexpr const char* names[] = {"float32", "float64", "float16", "bfloat16", "int64",
                                            "int32",   "uint8",   "bool",    "other"};
    std::string s = std::string(names[static_cast<int>(dtype)]) + " [";
    for (int i = 0; i < ndim; ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
    return s + "]" + (device >= 0 ? " on cuda:" + std::to_string(device) : " on the CPU");
  }

  // Refuses a tensor of another shape, dtype or device; the last line of defence behind the checks in Python.
  const Tensor& expect(const char* name, std::initializer_list<int64_t> want, DType want_dtype, int want_device) const {
    bool ok = defined && ndim == static_cast<int>(want.size()) && dtype == want_dtype && device == want_device;
    int i = 0;
    for (int64_t w : want) {
      if (ok && shape[i] != w) ok = false;
      ++i;
    }
    if (!ok) {
      Tensor w;
      w.ndim = 0;
      for (int64_t s : want) w.shape[w.ndim++] = s;
      w.dtype = want_dtype;
      w.device = want_device;
      throw std::invalid_argument(std::string(name) + ": expected " + w.describe() + ", got " +
                                  (defined ? describe() : std::string("None")));
    }
    return *this;
  }
};

// torch dtype objects in the order of DType, filled when the module is loaded.
inline PyObject*& torch_dtype(int i) {
  static PyObject* objects[static_cast<int>(DType::other)] = {};
  return objects[i];
}

}  // namespace gf

namespace pybind11 {
namespace detail {

template <>
struct type_caster<gf::Tensor> {
  PYBIND11_TYPE_CASTER(gf::Tensor, const_name("torch.Tensor | None"));

  bool load(handle src, bool) {
    if (src.is_none()) return true;  // an optional tensor that is absent
    struct Names {
      PyObject *shape = PyUnicode_InternFromString("shape"), *dtype = PyUnicode_InternFromString("dtype"),
               *get_device = PyUnicode_InternFromString("get_device"),
               *data_ptr = PyUnicode_InternFromString("data_ptr"),
               *is_contiguous = PyUnicode_InternFromString("is_contiguous");
    };
    static const Names names;
    const auto shape = reinterpret_steal<object>(PyObject_GetAttr(src.ptr(), names.shape));
    const auto dtype = reinterpret_steal<object>(PyObject_GetAttr(src.ptr(), names.dtype));
    if (!shape || !dtype || !PyTuple_Check(shape.ptr())) {
      PyErr_Clear();
      return false;
    }
    const auto call = [&](PyObject* name) {
      auto r = reinterpret_steal<object>(PyObject_CallMethodNoArgs(src.ptr(), name));
      if (!r) throw error_already_set();
      return r;
    };
    value.ndim = static_cast<int>(PyTuple_GET_SIZE(shape.ptr()));
    if (value.ndim > gf::Tensor::kMaxDim) throw value_error("a tensor of more than 8 dimensions");
    for (int i = 0; i < value.ndim; ++i) value.shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), i));
    value.dtype = gf::DType::other;
    for (int i = 0; i < static_cast<int>(gf::DType::other); ++i)
      if (dtype.ptr() == gf::torch_dtype(i)) value.dtype = static_cast<gf::DType>(i);
    value.device = static_cast<int>(PyLong_AsLong(call(names.get_device).ptr()));
    if (call(names.is_contiguous).ptr() != Py_True)
      throw value_error("a kernel was given a tensor that is not contiguous");
    value.data = PyLong_AsVoidPtr(call(names.data_ptr).ptr());
    if (PyErr_Occurred()) throw error_already_set();
    value.defined = true;
    return true;
  }
};

}  // namespace detail
}  // namespace pybind11
