// Numbers of a tensor in the type they are computed in. Half types are converted a tile at a time, before and behind
// the arithmetic, so that CPU kernels exist for float and double alone.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "scratch.h"

namespace gf {
inline namespace GF_BACKEND {

inline bool is_half(DType t) { return t == DType::f16 || t == DType::bf16; }

// Element `i` of a tensor, for strides in elements.
inline const void* element(const void* p, DType t, int64_t i) { return static_cast<const char*>(p) + i * size_of(t); }
inline void* element(void* p, DType t, int64_t i) { return static_cast<char*>(p) + i * size_of(t); }

// A matrix [rows, cols] with these strides in elements, as cols numbers after cols numbers. Inner loops go along the
// longer side.
struct Layout {
  int64_t rows, cols, row, col;
};

// Reads a matrix of numbers, and writes one (rows_cpu.cpp).
void gather(const void* p, DType t, const Layout& m, float* out);
void gather(const void* p, DType t, const Layout& m, double* out);
void scatter(const float* in, void* p, DType t, const Layout& m);
void scatter(const double* in, void* p, DType t, const Layout& m);

// The same for n numbers in a row.
template <class T>
inline void gather(const void* p, DType t, int64_t n, T* out) {
  gather(p, t, Layout{1, n, n, 1}, out);
}
template <class T>
inline void scatter(const T* in, int64_t n, void* p, DType t) {
  scatter(in, p, t, Layout{1, n, n, 1});
}

// Contiguous numbers to read, at most `most` at a time: where they lie, or in the reader's buffer.
template <class T>
class Reader {
 public:
  Reader(const void* p, DType t, int64_t most) : p_(p), t_(t), buffer_(is_half(t) ? most : 0) {}
  const T* at(int64_t first, int64_t count) {
    const void* from = element(p_, t_, first);
    if (!is_half(t_)) return static_cast<const T*>(from);
    gather(from, t_, count, buffer_.get());
    return buffer_.get();
  }

 private:
  const void* p_;
  DType t_;
  Scratch<T> buffer_;
};

// The same to write; `finish` brings what was written at `at(first)` to its place.
template <class T>
class Writer {
 public:
  Writer(void* p, DType t, int64_t most) : p_(p), t_(t), buffer_(is_half(t) ? most : 0) {}
  T* at(int64_t first) { return is_half(t_) ? buffer_.get() : static_cast<T*>(element(p_, t_, first)); }
  void finish(int64_t first, int64_t count) {
    if (is_half(t_)) scatter(buffer_.get(), count, element(p_, t_, first), t_);
  }

 private:
  void* p_;
  DType t_;
  Scratch<T> buffer_;
};

}  // namespace GF_BACKEND
}  // namespace gf
