// Pack<T, N>: N numbers in one SIMD register, on GCC/Clang vector extensions. Arithmetic, comparison and memory only;
// the mathematics is in real.h.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "dtype.h"

#if !defined(__CUDACC__)  // device code has no vector types

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define GF_HAS_SHUFFLEVECTOR 1
#endif
#endif

namespace gf {
inline namespace GF_BACKEND {

// Bytes of the widest register of this instruction set.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct IntOf;
template <>
struct IntOf<float> {
  using type = int32_t;
};
template <>
struct IntOf<double> {
  using type = int64_t;
};

template <class T, int N>
struct Mask {
  typedef typename IntOf<T>::type Vec __attribute__((vector_size(N * sizeof(T))));
  Vec m;  // all bits of a lane set: true

  friend GF_HD Mask operator&(Mask a, Mask b) { return {a.m & b.m}; }
  friend GF_HD Mask operator|(Mask a, Mask b) { return {a.m | b.m}; }
  friend GF_HD Mask operator!(Mask a) { return {~a.m}; }
};

template <class T, int N>
struct Pack {
  static constexpr int size = N;
  using Int = typename IntOf<T>::type;
  typedef T Vec __attribute__((vector_size(N * sizeof(T))));
  typedef Int IntVec __attribute__((vector_size(N * sizeof(T))));
  Vec v;

  Pack() = default;
  GF_HD Pack(Vec x) : v(x) {}
  template <class U, std::enable_if_t<std::is_arithmetic<U>::value, int> = 0>
  GF_HD Pack(U x) : v(static_cast<T>(x) - Vec{}) {}  // x - 0 broadcasts and keeps -0 and NaN

  GF_HD T operator[](int i) const { return v[i]; }
  GF_HD void set(int i, T x) { v[i] = x; }

  friend GF_HD Pack operator+(Pack a, Pack b) { return a.v + b.v; }
  friend GF_HD Pack operator-(Pack a, Pack b) { return a.v - b.v; }
  friend GF_HD Pack operator*(Pack a, Pack b) { return a.v * b.v; }
  friend GF_HD Pack operator/(Pack a, Pack b) { return a.v / b.v; }
  friend GF_HD Pack operator-(Pack a) { return -a.v; }
  GF_HD Pack& operator+=(Pack b) { return v += b.v, *this; }
  GF_HD Pack& operator-=(Pack b) { return v -= b.v, *this; }
  GF_HD Pack& operator*=(Pack b) { return v *= b.v, *this; }

  friend GF_HD Mask<T, N> operator<(Pack a, Pack b) { return {a.v < b.v}; }
  friend GF_HD Mask<T, N> operator<=(Pack a, Pack b) { return {a.v <= b.v}; }
  friend GF_HD Mask<T, N> operator>(Pack a, Pack b) { return {a.v > b.v}; }
  friend GF_HD Mask<T, N> operator>=(Pack a, Pack b) { return {a.v >= b.v}; }
  friend GF_HD Mask<T, N> operator==(Pack a, Pack b) { return {a.v == b.v}; }
  friend GF_HD Mask<T, N> operator!=(Pack a, Pack b) { return {a.v != b.v}; }
};

// The native pack of a type: one full register.
template <class T>
using Native = Pack<T, kVectorBytes / static_cast<int>(sizeof(T))>;

template <class T, int N>
GF_HD Pack<T, N> select(Mask<T, N> m, Pack<T, N> a, Pack<T, N> b) {
  return Pack<T, N>(m.m ? a.v : b.v);
}

template <class T, int N>
GF_HD bool any(Mask<T, N> m) {
#if defined(__AVX512F__)
  if constexpr (sizeof(m.m) == 64) {
    if constexpr (sizeof(T) == 4) return _mm512_test_epi32_mask((__m512i)m.m, (__m512i)m.m) != 0;
    if constexpr (sizeof(T) == 8) return _mm512_test_epi64_mask((__m512i)m.m, (__m512i)m.m) != 0;
  }
#endif
#if defined(__AVX__)
  if constexpr (sizeof(m.m) == 32) return !_mm256_testz_si256((__m256i)m.m, (__m256i)m.m);
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(m.m) == 16) return _mm_movemask_epi8((__m128i)m.m) != 0;
#endif
  typename IntOf<T>::type r = 0;
  for (int i = 0; i < N; ++i) r |= m.m[i];
  return r != 0;
}

template <class T, int N>
GF_HD bool all(Mask<T, N> m) {
  return !any(!m);
}

// The lanes kOffset ... kOffset + sizeof...(I) - 1.
template <int kOffset, class T, int N, int... I>
GF_HD Pack<T, static_cast<int>(sizeof...(I))> slice(Pack<T, N> x, std::integer_sequence<int, I...>) {
  Pack<T, static_cast<int>(sizeof...(I))> r;
#if GF_HAS_SHUFFLEVECTOR
  r.v = __builtin_shufflevector(x.v, x.v, (kOffset + I)...);
#else
  memcpy(&r.v, reinterpret_cast<const char*>(&x.v) + kOffset * sizeof(T), sizeof(r.v));
#endif
  return r;
}

// The sum of the lanes: halves are added until two numbers are left.
template <class T, int N>
GF_HD T sum(Pack<T, N> x) {
  if constexpr (N == 2) {
    return x[0] + x[1];
  } else {
    using Half = std::make_integer_sequence<int, N / 2>;
    return sum(slice<0>(x, Half{}) + slice<N / 2>(x, Half{}));
  }
}

// --- memory: `S` is the storage type, `n` the number of lanes that exist (missing lanes are `missing`, zero by
// default, and are not written) ---

template <class P, class S>
GF_HD P load(const S* p) {
  P r;
  if constexpr (std::is_same<S, decltype(r[0])>::value) {
    memcpy(&r.v, p, sizeof(r.v));
  } else {
#if defined(__AVX512F__)
    if constexpr (std::is_same<S, Half>::value && P::size == 16)
      return P((typename P::Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__)
    if constexpr (std::is_same<S, Half>::value && P::size == 8)
      return P((typename P::Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#endif
    for (int i = 0; i < P::size; ++i) r.v[i] = to_real(p[i]);
  }
  return r;
}

template <class S, class P>
GF_HD void store(S* p, P x) {
  if constexpr (std::is_same<S, decltype(x[0])>::value) {
    memcpy(p, &x.v, sizeof(x.v));
  } else {
#if defined(__AVX512F__)
    if constexpr (std::is_same<S, Half>::value && P::size == 16) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)x.v, _MM_FROUND_TO_NEAREST_INT));
      return;
    }
#elif defined(__F16C__)
    if constexpr (std::is_same<S, Half>::value && P::size == 8) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)x.v, _MM_FROUND_TO_NEAREST_INT));
      return;
    }
#endif
    for (int i = 0; i < P::size; ++i) p[i] = from_real<S>(x[i]);
  }
}

template <class P, class S>
GF_HD P load_first(const S* p, int n, compute_t<S> missing = 0) {
  if (n >= P::size) return load<P>(p);
  P r(missing);
  for (int i = 0; i < n; ++i) r.v[i] = to_real(p[i]);
  return r;
}

template <class S, class P>
GF_HD void store_first(S* p, P x, int n) {
  if (n >= P::size) return store(p, x);
  for (int i = 0; i < n; ++i) p[i] = from_real<S>(x[i]);
}

// The first n lanes of x, and `missing` in the others.
template <class T, int N>
GF_HD Pack<T, N> keep_first(Pack<T, N> x, int n, T missing) {
  if (n < N)
    for (int i = n > 0 ? n : 0; i < N; ++i) x.v[i] = missing;
  return x;
}

// Lane i from p[i * stride]: a column of a row-major matrix.
template <class P, class S>
GF_HD P load_strided(const S* p, int64_t stride, int n) {
  P r(0);
  if (n >= P::size) {
    for (int i = 0; i < P::size; ++i) r.v[i] = to_real(p[i * stride]);
  } else {
    for (int i = 0; i < n; ++i) r.v[i] = to_real(p[i * stride]);
  }
  return r;
}

template <class S, class P>
GF_HD void store_strided(S* p, int64_t stride, P x, int n) {
  for (int i = 0; i < P::size; ++i) {
    if (i < n) p[i * stride] = from_real<S>(x[i]);
  }
}

}  // namespace GF_BACKEND
}  // namespace gf

#endif  // !__CUDACC__
