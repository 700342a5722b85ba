// Columns of a row-major matrix as packs (lanes are rows), and back, by transposition in registers.
//
// A tile of P::size rows and C columns (a power of two), its rows one after the other, fills C registers. Taking all
// even and then all odd elements of that sequence rotates the bits of an element's place by one; after log2(C) such
// steps the column number is above the row number, which is the transpose. Any number of columns is a sum of tiles.
#pragma once

#include <utility>

#include "pack.h"

namespace gf {
inline namespace GF_BACKEND {

template <class P, std::size_t... I>
GF_HD P tile_shuffle(P a, P b, std::index_sequence<I...>) {
#if defined(__clang__)
  return P(typename P::Vec(__builtin_shufflevector(a.v, b.v, static_cast<int>(I)...)));
#else
  return P(__builtin_shuffle(a.v, b.v, typename P::IntVec{static_cast<typename P::Int>(I)...}));
#endif
}
template <class P, std::size_t... I>
GF_HD P tile_even(P a, P b, std::index_sequence<I...>) {
  return tile_shuffle(a, b, std::index_sequence<2 * I...>{});
}
template <class P, std::size_t... I>
GF_HD P tile_odd(P a, P b, std::index_sequence<I...>) {
  return tile_shuffle(a, b, std::index_sequence<2 * I + 1 ...>{});
}
// Elements of a and b in turn, from a's lane `kFrom` on.
template <std::size_t kFrom, class P, std::size_t... I>
GF_HD P tile_zip(P a, P b, std::index_sequence<I...>) {
  return tile_shuffle(a, b, std::index_sequence<(kFrom + I / 2 + (I % 2) * sizeof...(I))...>{});
}

template <int C, class P>
GF_HD void tile_to_columns(P* r) {
  constexpr auto lanes = std::make_index_sequence<P::size>{};
  for (int step = 1; step < C; step *= 2) {
    P s[C];
    for (int i = 0; i < C / 2; ++i) {
      s[i] = tile_even(r[2 * i], r[2 * i + 1], lanes);
      s[i + C / 2] = tile_odd(r[2 * i], r[2 * i + 1], lanes);
    }
    for (int i = 0; i < C; ++i) r[i] = s[i];
  }
}

template <int C, class P>
GF_HD void tile_to_rows(P* r) {
  constexpr auto lanes = std::make_index_sequence<P::size>{};
  for (int step = 1; step < C; step *= 2) {
    P s[C];
    for (int i = 0; i < C / 2; ++i) {
      s[2 * i] = tile_zip<0>(r[i], r[i + C / 2], lanes);
      s[2 * i + 1] = tile_zip<P::size / 2>(r[i], r[i + C / 2], lanes);
    }
    for (int i = 0; i < C; ++i) r[i] = s[i];
  }
}

// out[c] = column c of the rows at p, stride apart; `n` columns.
template <int C, class P, class T>
GF_HD void load_columns(const T* p, int64_t stride, int n, P* out) {
  for (; n >= C; n -= C, p += C, out += C) {
    if constexpr (C == 1) {
      out[0] = load_strided<P>(p, stride, P::size);
    } else {
      P r[C];
      if (C == P::size || stride == C) {
        for (int i = 0; i < C; ++i) r[i] = load<P>(p + i * (P::size / C) * stride);
      } else {
        T rows[P::size * C];
        for (int i = 0; i < P::size; ++i) memcpy(rows + i * C, p + i * stride, C * sizeof(T));
        memcpy(r, rows, sizeof(r));
      }
      tile_to_columns<C>(r);
      for (int i = 0; i < C; ++i) out[i] = r[i];
    }
  }
  if constexpr (C > 1) load_columns<C / 2>(p, stride, n, out);
}

template <int C, class P, class T>
GF_HD void store_columns(T* p, int64_t stride, int n, const P* in) {
  for (; n >= C; n -= C, p += C, in += C) {
    if constexpr (C == 1) {
      store_strided(p, stride, in[0], P::size);
    } else {
      P r[C];
      for (int i = 0; i < C; ++i) r[i] = in[i];
      tile_to_rows<C>(r);
      if (C == P::size || stride == C) {
        for (int i = 0; i < C; ++i) store(p + i * (P::size / C) * stride, r[i]);
      } else {
        T rows[P::size * C];
        memcpy(rows, r, sizeof(r));
        for (int i = 0; i < P::size; ++i) memcpy(p + i * stride, rows + i * C, C * sizeof(T));
      }
    }
  }
  if constexpr (C > 1) store_columns<C / 2>(p, stride, n, in);
}

// One row of the buffer for each of `repeats` numbers that share a row of parameters, and the sum of their gradients.
template <class T, class S>
GF_NOINLINE void copy_in(T* to, const S* from, int64_t stride, int64_t width, int64_t count, int64_t repeats) {
  for (int64_t i = 0; i < count; ++i, from += stride) {
    const T* first = to;
    for (int64_t j = 0; j < width; ++j) to[j] = to_real(from[j]);
    to += width;
    for (int64_t v = 1; v < repeats; ++v, to += width) memcpy(to, first, width * sizeof(T));
  }
}
template <class S, class T>
GF_NOINLINE void copy_out(S* to, int64_t stride, T* from, int64_t width, int64_t count, int64_t repeats) {
  for (int64_t i = 0; i < count; ++i, to += stride, from += repeats * width) {
    for (int64_t v = 1; v < repeats; ++v) {
      const T* GF_RESTRICT next = from + v * width;
      for (int64_t j = 0; j < width; ++j) from[j] += next[j];
    }
    for (int64_t j = 0; j < width; ++j) to[j] = from_real<S>(from[j]);
  }
}

}  // namespace GF_BACKEND
}  // namespace gf
