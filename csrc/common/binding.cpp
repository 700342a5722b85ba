// Kernels as functions of Python: reads the arguments of a call, allocates the workspace, and runs the entry point of
// the backend. Arguments go by position, by keyword, or mixed. Tensors are read through their public attributes.
#include <Python.h>

#include <cstring>
#include <new>
#include <optional>
#include <stdexcept>

#include "binding.h"
#include "dlpack.h"
#include "kernel.h"

namespace gf {

namespace {

struct PythonError {};  // one is set already

PyObject* check(PyObject* object) {
  if (object == nullptr) throw PythonError{};
  return object;
}

// A reference of our own.
class Owned {
 public:
  explicit Owned(PyObject* object) : object_(check(object)) {}
  ~Owned() { Py_DECREF(object_); }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  PyObject* get() const { return object_; }

 private:
  PyObject* object_;
};

template <class... Parts>
[[noreturn]] void type_error(const char* format, Parts... parts) {
  PyErr_Format(PyExc_TypeError, format, parts...);
  throw PythonError{};
}

// Objects that calls need, made when the module is loaded and kept for ever.
struct Names {
  PyObject *shape, *dtype, *stride, *get_device, *data_ptr, *is_contiguous, *is_neg, *new_empty, *workspace;
  PyObject* dtypes[static_cast<int>(DType::other)];  // torch's, in the order of DType
  PyObject* new_empty_keywords;                      // ("dtype",)
  PyObject* raw_stream;                              // of a device index; null without CUDA in torch
  PyTypeObject* tensor_type;
  const dlpack::Exchange* exchange;  // null where torch has none that we know
} names;

// A kernel as a function of Python.
struct Function {
  const Kernel& kernel;
  PyMethodDef method;
  PyObject* arguments[kMaxArguments];  // their names
};

int64_t to_int64(PyObject* number) {
  const long long value = PyLong_AsLongLong(number);
  if (value == -1 && PyErr_Occurred()) throw PythonError{};
  return value;
}

int64_t call_for_int(PyObject* object, PyObject* method) {
  return to_int64(Owned(PyObject_CallMethodNoArgs(object, method)).get());
}

bool read_attributes = false;  // although there is a faster way

// What torch's C interface tells in a few nanoseconds. False: ask the attributes, which also know what is wrong.
bool read_view(PyObject* object, Tensor* t) {
  if (read_attributes || names.exchange == nullptr || !PyObject_TypeCheck(object, names.tensor_type)) return false;
  dlpack::View v;
  if (names.exchange->view(object, &v) != 0) {
    PyErr_Clear();
    return false;
  }
  const bool cuda = v.device_type == dlpack::kCuda;
  if ((!cuda && v.device_type != dlpack::kCpu) || v.ndim > Tensor::kMaxDim) return false;
  t->ndim = v.ndim;
  t->dtype = dlpack::dtype_of(v);
  t->device = cuda ? v.device_index : -1;
  t->data = static_cast<char*>(v.data) + v.byte_offset;
  int64_t next = 1;
  bool contiguous = true, empty = false;
  for (int i = v.ndim - 1; i >= 0; --i) {
    t->shape[i] = v.shape[i];
    t->stride[i] = v.strides[i];
    empty = empty || v.shape[i] == 0;
    contiguous = contiguous && (v.shape[i] == 1 || v.strides[i] == next);
    next *= v.shape[i];
  }
  t->contiguous = contiguous || empty;
  return true;
}

void read_attributes_of(const Kernel& k, const Argument& a, PyObject* object, Tensor* t) {
  PyObject* shape = PyObject_GetAttr(object, names.shape);
  if (shape == nullptr || !PyTuple_Check(shape)) {
    Py_XDECREF(shape);
    PyErr_Clear();
    type_error("%s: %s: expected a torch.Tensor, got %s", k.name, a.name.c_str(), Py_TYPE(object)->tp_name);
  }
  const Owned owned(shape);
  t->ndim = static_cast<int>(PyTuple_GET_SIZE(shape));
  if (t->ndim > Tensor::kMaxDim) throw std::invalid_argument(a.name + ": more than 8 dimensions");
  for (int i = 0; i < t->ndim; ++i) t->shape[i] = to_int64(PyTuple_GET_ITEM(shape, i));
  const Owned dtype(PyObject_GetAttr(object, names.dtype));
  t->dtype = DType::other;
  for (int i = 0; i < static_cast<int>(DType::other); ++i)
    if (dtype.get() == names.dtypes[i]) t->dtype = static_cast<DType>(i);
  t->device = static_cast<int>(call_for_int(object, names.get_device));
  t->contiguous = Owned(PyObject_CallMethodNoArgs(object, names.is_contiguous)).get() == Py_True;
  if (!t->contiguous && a.kind == Kind::strided) {
    const Owned stride(PyObject_CallMethodNoArgs(object, names.stride));
    for (int i = 0; i < t->ndim; ++i) t->stride[i] = to_int64(PyTuple_GET_ITEM(stride.get(), i));
  }
  t->data = PyLong_AsVoidPtr(Owned(PyObject_CallMethodNoArgs(object, names.data_ptr)).get());
  if (PyErr_Occurred()) throw PythonError{};
}

void read(const Kernel& k, const Argument& a, PyObject* object, Tensor* t) {
  t->defined = object != Py_None;
  if (!t->defined) return;
  const bool known = read_view(object, t);
  if (!known) read_attributes_of(k, a, object, t);
  // Lazily negated: the numbers in memory have the other sign. (Outputs were made for the call.)
  if (!a.is_output() && Owned(PyObject_CallMethodNoArgs(object, names.is_neg)).get() == Py_True)
    throw std::invalid_argument(a.name + ": expected a tensor without the negative bit; resolve_neg() writes it out");
}

void read_scalar(const Kernel& k, const Argument& a, PyObject* object, unsigned char* args) {
  const auto expected = [&](const char* what) {
    type_error("%s: %s: expected %s, got %s", k.name, a.name.c_str(), what, Py_TYPE(object)->tp_name);
  };
  if (a.kind == Kind::boolean) {
    if (!PyBool_Check(object)) expected("a bool");
    put(args, a.at, object == Py_True);
  } else if (a.kind == Kind::real) {
    const double value = PyFloat_AsDouble(object);
    if (value == -1.0 && PyErr_Occurred()) {
      PyErr_Clear();
      expected("a float");
    }
    put(args, a.at, value);
  } else {
    if (!PyLong_Check(object)) expected("an int");
    if (a.kind == Kind::uint32) {  // counters wrap
      put(args, a.at, static_cast<uint32_t>(PyLong_AsUnsignedLongMask(object)));
    } else if (a.kind == Kind::int64) {
      put(args, a.at, to_int64(object));
    } else {
      const int64_t value = to_int64(object);
      if (value != static_cast<int32_t>(value)) throw std::invalid_argument(a.name + ": does not fit in 32 bits");
      put(args, a.at, static_cast<int32_t>(value));
    }
  }
}

// One object an argument, in the declared order; null where it was left out. Borrowed.
void place(const Function& f, PyObject* const* args, Py_ssize_t count, PyObject* keywords, PyObject** objects) {
  const Kernel& k = f.kernel;
  const Py_ssize_t wanted = static_cast<Py_ssize_t>(k.arguments.size());
  if (count > wanted) type_error("%s: takes %zd arguments, got %zd", k.name, wanted, count);
  for (Py_ssize_t i = 0; i < wanted; ++i) objects[i] = i < count ? args[i] : nullptr;
  const Py_ssize_t named = keywords ? PyTuple_GET_SIZE(keywords) : 0;
  for (Py_ssize_t j = 0; j < named; ++j) {
    PyObject* name = PyTuple_GET_ITEM(keywords, j);
    Py_ssize_t i = 0;
    while (i < wanted && f.arguments[i] != name) ++i;
    if (i == wanted)  // a name that was not interned
      for (i = 0; i < wanted && PyUnicode_Compare(f.arguments[i], name) != 0;) ++i;
    if (i == wanted) type_error("%s: no argument %R", k.name, name);
    if (objects[i] != nullptr) type_error("%s: got two values for %s", k.name, k.arguments[i].name.c_str());
    objects[i] = args[count + j];
  }
}

bool keep_workspaces = true;

// Memory of one call, through torch's allocator. On the CPU a thread keeps its last workspace, whose pages are there
// already: fresh ones cost a fifth of a large Gibbs sweep. It is not kept for calls that need less than half of it,
// unless it is small.
PyObject* workspace(PyObject* like, int64_t bytes, bool on_cpu) {
  constexpr int64_t kSmall = 1 << 20;
  PyObject* kept = on_cpu && keep_workspaces ? PyThreadState_GetDict() : nullptr;
  if (kept != nullptr) {
    PyObject* last = PyDict_GetItemWithError(kept, names.workspace);
    if (last == nullptr && PyErr_Occurred()) throw PythonError{};
    if (last != nullptr) {
      const Owned shape(PyObject_GetAttr(last, names.shape));
      const int64_t size = to_int64(PyTuple_GET_ITEM(shape.get(), 0));
      if (size >= bytes && (size <= kSmall || size / 2 <= bytes)) {
        Py_INCREF(last);
        return last;
      }
      if (PyDict_DelItem(kept, names.workspace) != 0) throw PythonError{};  // before the next one is allocated
    }
  }
  const Owned size(PyLong_FromLongLong(bytes));
  PyObject* arguments[] = {like, size.get(), names.dtypes[static_cast<int>(DType::u8)]};
  PyObject* made = check(PyObject_VectorcallMethod(names.new_empty, arguments, 2, names.new_empty_keywords));
  if (kept != nullptr && PyDict_SetItem(kept, names.workspace, made) != 0) {
    Py_DECREF(made);
    throw PythonError{};
  }
  return made;
}

Entry entry_of(const Kernel& k, Backend backend) {
  const Entry entry = k.entries[static_cast<int>(backend)];
  if (entry == nullptr)
    throw std::runtime_error(std::string(k.name) +
                             ": this build of genfast has no kernel for this device; `genfast info` lists what it has "
                             "(for CUDA: reinstall with nvcc on the PATH, or with GENFAST_CUDA=ON to see what is "
                             "missing)");
  return entry;
}

// Other Python threads run meanwhile, where it takes long.
struct WithoutGil {
  PyThreadState* state;
  explicit WithoutGil(bool release) : state(release ? PyEval_SaveThread() : nullptr) {}
  ~WithoutGil() {
    if (state != nullptr) PyEval_RestoreThread(state);
  }
};

constexpr double kLongCall = 20e3;  // nanoseconds: from here on other Python threads may run, and OpenMP's help
thread_local bool long_call = false;

PyObject* run(const Function& f, PyObject* const* arguments, Py_ssize_t count, PyObject* keywords) {
  const Kernel& k = f.kernel;
  PyObject* objects[kMaxArguments];
  place(f, arguments, count, keywords, objects);

  Tensor tensors[kMaxArguments];
  alignas(64) unsigned char args[kMaxArgs];
  std::memset(args, 0, k.bytes);
  int32_t result = 0;
  const Argument* result_of = nullptr;
  PyObject* like = nullptr;
  for (std::size_t i = 0; i < k.arguments.size(); ++i) {
    const Argument& a = k.arguments[i];
    if (objects[i] == nullptr) {
      if (!a.is_optional) type_error("%s: missing argument '%s'", k.name, a.name.c_str());
      objects[i] = Py_None;
    }
    if (!a.is_tensor()) {
      read_scalar(k, a, objects[i], args);
      continue;
    }
    read(k, a, objects[i], &tensors[i]);
    if (tensors[i].defined) {
      if (like == nullptr) like = objects[i];
    } else if (a.is_returned) {
      result_of = &a;
    }
  }
  const int device = k.bind(tensors, args);
  const Backend backend = device >= 0 ? Backend::cuda : cpu_target();
  const Entry entry = entry_of(k, backend);
  if (result_of != nullptr && device < 0)
    put(args, result_of->at, &result);
  else
    result_of = nullptr;
  if (k.call_prepare) k.call_prepare(k.prepare_hook, args, backend);

  std::optional<Owned> held;  // the workspace
  const int64_t numbers = k.workspace_at >= 0 ? k.call_workspace(k.workspace_hook, args, backend) : 0;
  if (numbers > 0) {
    DType type = k.workspace_type;
    if (type == DType::other) {
      std::memcpy(&type, args + k.types[0].at, sizeof(type));
      type = sum_type(type);
    }
    held.emplace(workspace(like, numbers * size_of(type), device < 0));
    put(args, static_cast<std::size_t>(k.workspace_at),
        PyLong_AsVoidPtr(Owned(PyObject_CallMethodNoArgs(held->get(), names.data_ptr)).get()));
  }

  double work = 0;
  if (device >= 0) {
    if (names.raw_stream != nullptr) {
      const Owned index(PyLong_FromLong(device));
      const Owned stream(PyObject_CallOneArg(names.raw_stream, index.get()));
      put(args, k.stream_at + offsetof(Stream, handle), PyLong_AsVoidPtr(stream.get()));
      if (PyErr_Occurred()) throw PythonError{};
    }
  } else if (k.call_work) {
    work = k.call_work(k.work_hook, args);
  } else {
    for (std::size_t i = 0; i < k.arguments.size(); ++i)
      if (k.arguments[i].is_tensor() && tensors[i].defined) work += static_cast<double>(tensors[i].numel());
  }
  int64_t returned;
  {
    long_call = work > kLongCall;
    const WithoutGil free(long_call);
    returned = entry(args);
  }
  if (k.returns_bool) return PyBool_FromLong(static_cast<long>(returned));
  if (result_of != nullptr) return PyLong_FromLong(result);
  Py_RETURN_NONE;
}

PyObject* call(PyObject* self, PyObject* const* arguments, Py_ssize_t count, PyObject* keywords) {
  try {
    return run(*static_cast<const Function*>(PyCapsule_GetPointer(self, nullptr)), arguments, count, keywords);
  } catch (const PythonError&) {
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

}  // namespace

bool is_long_call() { return long_call; }

void set_keep_workspaces(bool keep) { keep_workspaces = keep; }
void set_read_attributes(bool read) { read_attributes = read; }

PyObject* add_kernels(PyObject* module) {
  try {
    const Owned torch(PyImport_ImportModule("torch"));
    for (int i = 0; i < static_cast<int>(DType::other); ++i)
      names.dtypes[i] = check(PyObject_GetAttrString(torch.get(), name_of(static_cast<DType>(i))));
    const auto intern = [](const char* text) { return check(PyUnicode_InternFromString(text)); };
    names.shape = intern("shape"), names.dtype = intern("dtype"), names.stride = intern("stride");
    names.get_device = intern("get_device"), names.data_ptr = intern("data_ptr");
    names.is_contiguous = intern("is_contiguous"), names.new_empty = intern("new_empty");
    names.is_neg = intern("is_neg");
    names.workspace = intern("genfast workspace");
    names.new_empty_keywords = check(PyTuple_Pack(1, names.dtype));
    const Owned c(PyObject_GetAttrString(torch.get(), "_C"));
    names.raw_stream = PyObject_GetAttrString(c.get(), "_cuda_getCurrentRawStream");
    if (names.raw_stream == nullptr) PyErr_Clear();  // a torch without CUDA

    names.tensor_type = reinterpret_cast<PyTypeObject*>(check(PyObject_GetAttrString(torch.get(), "Tensor")));
    PyObject* capsule =
        PyObject_GetAttrString(reinterpret_cast<PyObject*>(names.tensor_type), "__dlpack_c_exchange_api__");
    const void* table =
        capsule ? PyCapsule_GetPointer(capsule, "dlpack_exchange_api") : nullptr;  // lives as long as torch
    Py_XDECREF(capsule);
    PyErr_Clear();
    names.exchange = static_cast<const dlpack::Exchange*>(table);
    if (names.exchange && (names.exchange->major != 1 || !names.exchange->view)) names.exchange = nullptr;

    const Owned all(PyDict_New());
    for (const Kernel* k = first_kernel(); k != nullptr; k = k->next) {
      auto* f = new Function{*k,  // for ever, like the module
                             {k->name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call)),
                              METH_FASTCALL | METH_KEYWORDS, nullptr},
                             {}};
      const Owned arguments(PyTuple_New(static_cast<Py_ssize_t>(k->arguments.size())));
      for (std::size_t i = 0; i < k->arguments.size(); ++i) {
        f->arguments[i] = intern(k->arguments[i].name.c_str());
        Py_INCREF(f->arguments[i]);
        PyTuple_SET_ITEM(arguments.get(), static_cast<Py_ssize_t>(i), f->arguments[i]);
      }
      if (PyDict_SetItemString(all.get(), k->name, arguments.get()) != 0) throw PythonError{};
      const Owned self(PyCapsule_New(f, nullptr, nullptr));
      const Owned function(PyCFunction_New(&f->method, self.get()));
      if (PyObject_SetAttrString(module, k->name, function.get()) != 0) throw PythonError{};
    }
    Py_INCREF(all.get());
    return all.get();
  } catch (const PythonError&) {
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ImportError, error.what());
  }
  return nullptr;
}

}  // namespace gf
