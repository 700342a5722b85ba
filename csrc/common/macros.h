// Names and attributes every file of csrc agrees on.
//
// A kernel file is compiled once per backend with GF_BACKEND set to one of the names below. All code that is generated
// per backend lives in `namespace gf { inline namespace GF_BACKEND { ... } }`, so that the linker never merges an
// inline function compiled for AVX-512 with the one compiled for SSE2.
#pragma once

#ifndef GF_BACKEND
#define GF_BACKEND host
#endif

namespace gf {
inline namespace GF_BACKEND {}
namespace baseline {}
namespace avx2 {}
namespace avx512 {}
namespace simt {}
namespace cuda {}
}  // namespace gf

// Declares one entry point in every backend; which of them exist is decided by the build (backend.h).
#define GF_DECLARE_BACKENDS(...) \
  namespace gf {                 \
  namespace baseline {           \
  __VA_ARGS__;                   \
  }                              \
  namespace avx2 {               \
  __VA_ARGS__;                   \
  }                              \
  namespace avx512 {             \
  __VA_ARGS__;                   \
  }                              \
  namespace simt {               \
  __VA_ARGS__;                   \
  }                              \
  namespace cuda {               \
  __VA_ARGS__;                   \
  }                              \
  }

// GF_HD: a function for host and device; GF_ROWS: one of an algorithm over rows, for where its kernels run.
#if defined(__CUDACC__)
#define GF_HD __host__ __device__ __forceinline__
#define GF_ROWS __device__ __forceinline__
#else
#define GF_HD inline __attribute__((always_inline))
#define GF_ROWS GF_HD
#endif

#define GF_RESTRICT __restrict__
#define GF_NOINLINE __attribute__((noinline))
