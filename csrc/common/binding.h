// Kernels as functions of Python.
#pragma once

#include <Python.h>

namespace gf {

// Adds a function for every kernel to the module. Returns a new dict of the kernels' names and those of their
// arguments; null with a Python error set on failure.
PyObject* add_kernels(PyObject* module);

// Whether CPU calls keep their workspace from call to call. Tests that look past its ends turn it off.
void set_keep_workspaces(bool keep);

// Whether tensors are read through their attributes even where torch has a faster way. For tests.
void set_read_attributes(bool read);

}  // namespace gf
