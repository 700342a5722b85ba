// A cache-line aligned buffer for one call of a CPU kernel.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "macros.h"

namespace gf {
inline namespace GF_BACKEND {

template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) {
    const std::size_t bytes = (static_cast<std::size_t>(count > 0 ? count : 1) * sizeof(T) + 63) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (!data_) throw std::bad_alloc();
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() { return data_; }

 private:
  T* data_;
};

}  // namespace GF_BACKEND
}  // namespace gf
