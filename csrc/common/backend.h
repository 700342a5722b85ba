// Which compiled variants of the kernels exist in this build, and which one a call goes to.
#pragma once

#include <stdexcept>

#include "tensor_arg.h"

namespace gf {

enum class Backend { baseline, avx2, avx512, simt, cuda };

// The variant that CPU tensors go to: the best instruction set of this processor unless a test chose another.
Backend cpu_target();

inline Backend backend_of(const Tensor& t) { return t.device >= 0 ? Backend::cuda : cpu_target(); }

}  // namespace gf

#if defined(GF_HAVE_AVX2)
#define GF_CASE_AVX2(fn, args) \
  case gf::Backend::avx2:      \
    return gf::avx2::fn(args);
#else
#define GF_CASE_AVX2(fn, args)
#endif
#if defined(GF_HAVE_AVX512)
#define GF_CASE_AVX512(fn, args) \
  case gf::Backend::avx512:      \
    return gf::avx512::fn(args);
#else
#define GF_CASE_AVX512(fn, args)
#endif
#if defined(GF_HAVE_SIMT)
#define GF_CASE_SIMT(fn, args) \
  case gf::Backend::simt:      \
    return gf::simt::fn(args);
#else
#define GF_CASE_SIMT(fn, args)
#endif
#if defined(GF_HAVE_CUDA)
#define GF_CASE_CUDA(fn, args) \
  case gf::Backend::cuda:      \
    return gf::cuda::fn(args);
#else
#define GF_CASE_CUDA(fn, args)
#endif

// Calls entry point `fn` of the chosen variant.
// clang-format off
#define GF_DISPATCH(backend, fn, args)                                                                        \
  [&] {                                                                                                       \
    switch (backend) {                                                                                        \
      case gf::Backend::baseline:                                                                             \
        return gf::baseline::fn(args);                                                                        \
      GF_CASE_AVX2(fn, args)                                                                                  \
      GF_CASE_AVX512(fn, args)                                                                                \
      GF_CASE_SIMT(fn, args)                                                                                  \
      GF_CASE_CUDA(fn, args)                                                                                  \
      default:                                                                                                \
        throw std::runtime_error(#fn                                                                          \
                                 ": this build of genfast has no kernel for this device; `genfast info` "     \
                                 "lists what it has (for CUDA: reinstall with nvcc on the PATH, or with "     \
                                 "-C cmake.define.GENFAST_CUDA=ON to see what is missing)");                  \
    }                                                                                                         \
  }()
// clang-format on
