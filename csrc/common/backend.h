// Which compiled variants of the kernels exist in this build, and which one a call goes to.
#pragma once

#include <cstdint>
#include <type_traits>

namespace gf {

enum class Backend : int { baseline, avx2, avx512, simt, cuda };
constexpr int kBackends = 5;

inline bool on_gpu(Backend b) { return b == Backend::simt || b == Backend::cuda; }

// The variant that CPU tensors go to: the best instruction set of this processor unless a test chose another.
Backend cpu_target();

// An entry point with its argument struct's type erased. What a kernel returns (nothing, or a small number) is widened.
using Entry = int64_t (*)(const void* args);

template <class Args, auto kFunction>
int64_t enter(const void* args) {
  if constexpr (std::is_void<decltype(kFunction(*static_cast<const Args*>(args)))>::value) {
    kFunction(*static_cast<const Args*>(args));
    return 0;
  } else {
    return kFunction(*static_cast<const Args*>(args));
  }
}

}  // namespace gf

#if defined(GF_HAVE_AVX2)
#define GF_ENTRY_AVX2(Args, fn) &gf::enter<Args, &gf::avx2::fn>
#else
#define GF_ENTRY_AVX2(Args, fn) nullptr
#endif
#if defined(GF_HAVE_AVX512)
#define GF_ENTRY_AVX512(Args, fn) &gf::enter<Args, &gf::avx512::fn>
#else
#define GF_ENTRY_AVX512(Args, fn) nullptr
#endif
#if defined(GF_HAVE_SIMT)
#define GF_ENTRY_SIMT(Args, fn) &gf::enter<Args, &gf::simt::fn>
#else
#define GF_ENTRY_SIMT(Args, fn) nullptr
#endif
#if defined(GF_HAVE_CUDA)
#define GF_ENTRY_CUDA(Args, fn) &gf::enter<Args, &gf::cuda::fn>
#else
#define GF_ENTRY_CUDA(Args, fn) nullptr
#endif

// The entry points of `fn` in the order of Backend; null where a variant was not built.
#define GF_ENTRIES(Args, fn)                                                                                         \
  {&gf::enter<Args, &gf::baseline::fn>, GF_ENTRY_AVX2(Args, fn), GF_ENTRY_AVX512(Args, fn), GF_ENTRY_SIMT(Args, fn), \
   GF_ENTRY_CUDA(Args, fn)}
