// What ops with shared rows of parameters (shared_rows.h) check in their arguments: three tensors of parameters, or one
// `params` whose rows [a | b | c] they are parts of, and gradients that are packed alike.
#pragma once

#include <stdexcept>
#include <string>

#include "kernel.h"

namespace gf {

// Sets the sizes that follow from others, and says whether params is given; `size` is that of the first of the three
// tensors, `separate` whether they are given, `names` how an error lists them.
template <class Sizes>
bool check_shared_rows(const char* op, Sizes& s, const void* params, bool separate, int64_t size, const char* names) {
  s.count = s.groups * s.numbers;
  s.all_rows = s.groups * s.rows;
  // Empty tensors have no memory; and where params is missing, its size may be known from its gradient.
  if (s.all_rows > 0 ? (params != nullptr) == separate : s.packed <= 0 && size < 1)
    throw std::invalid_argument(std::string(op) + ": expected " + names + ", or params");
  if (s.inner < 1 || (s.rows > 0 ? s.numbers % (s.rows * s.inner) : s.numbers) != 0)
    throw std::invalid_argument(std::string(op) +
                                ": expected numbers in whole runs of `inner` for each row of parameters");
  if (s.rows == 1 && s.numbers > 0) s.inner = s.numbers;
  s.repeats = s.rows > 0 ? s.numbers / s.rows : 0;
  return s.packed > 0;
}

template <class Sizes>
void check_packed_alike(const char* op, const Sizes& s, bool packed, const void* grad_params, bool separate) {
  if (s.all_rows > 0 && (packed == separate || packed != (grad_params != nullptr)))
    throw std::invalid_argument(std::string(op) + ": parameters and their gradients must be packed alike");
}

// The parts a and b of `size` numbers and c of packed rows. Pointer is char of the constness of the parameters.
template <class Pointer, class Parameters>
void unpack(Parameters packed, int64_t size, DType dtype, Parameters* a, Parameters* b, Parameters* c) {
  *a = packed;
  *b = static_cast<Pointer>(packed) + size * size_of(dtype);
  *c = static_cast<Pointer>(packed) + 2 * size * size_of(dtype);
}

}  // namespace gf
