// Products of a small matrix with rows as columns (columns.h), and sums of outer products over rows: what an op on rows
// spends its time in when it is made of matrices. Each is tiled so that its sums stay in registers.
#pragma once

#include "columns.h"
#include "outer_tiles.h"

namespace gf {
inline namespace GF_BACKEND {

template <int kRows, int kAcross, class P, class T>
GF_HD void product_tile(const T* a, int64_t row, int64_t col, int64_t n, const Packs<P>* in, const Packs<P>* start,
                        Packs<P>* out, int first) {
  P sum[kRows][kAcross];
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kAcross; ++p) sum[r][p] = start[r].v[first + p];
  for (int64_t j = 0; j < n; ++j) {
    P x[kAcross];
    for (int p = 0; p < kAcross; ++p) x[p] = in[j].v[first + p];
    for (int r = 0; r < kRows; ++r) {
      const P weight(a[r * row + j * col]);
      for (int p = 0; p < kAcross; ++p) sum[r][p] = fma(weight, x[p], sum[r][p]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kAcross; ++p) out[r].v[first + p] = sum[r][p];
}

// out[i] = start[i] + sum_j a[i row + j col] in[j], for m numbers i and n numbers j; `out` may be `start`.
template <class P, class T>
GF_NOINLINE void add_product(const T* a, int64_t row, int64_t col, int64_t m, int64_t n, const Packs<P>* in,
                             const Packs<P>* start, Packs<P>* out) {
  // 4 numbers of as many packs as 16 or 32 registers have room for: fewer loads than multiply-adds.
  constexpr int kRows = 4, kAcross = kVectorBytes == 64 ? 4 : 2;
  static_assert(kPacks % kAcross == 0, "whole tiles");
  int64_t i = 0;
  for (; i + kRows <= m; i += kRows)
    for (int p = 0; p < kPacks; p += kAcross)
      product_tile<kRows, kAcross>(a + i * row, row, col, n, in, start + i, out + i, p);
  for (; i < m; ++i) product_tile<1, kPacks>(a + i * row, row, col, n, in, start + i, out + i, 0);
}

// Lane i is the sum of the lanes of x[i].
template <class T, int N, int... I>
GF_HD Pack<T, N> sum_each(Pack<T, N>* x, std::integer_sequence<int, I...>) {
  using P = Pack<T, N>;
#if GF_HAS_SHUFFLEVECTOR
  // Each step halves the registers: the sums of a pair go side by side, `kGroup` lanes of each.
  const auto step = [&](auto group) {
    constexpr int kGroup = decltype(group)::value;
    for (int i = 0; i < kGroup; ++i) {
      const P a = x[i], b = x[i + kGroup];
      x[i].v = __builtin_shufflevector(a.v, b.v, (I / kGroup % 2 * N + I / (2 * kGroup) * 2 * kGroup + I % kGroup)...) +
               __builtin_shufflevector(a.v, b.v,
                                       (I / kGroup % 2 * N + I / (2 * kGroup) * 2 * kGroup + kGroup + I % kGroup)...);
    }
  };
  if constexpr (N >= 16) step(std::integral_constant<int, 8>{});
  if constexpr (N >= 8) step(std::integral_constant<int, 4>{});
  if constexpr (N >= 4) step(std::integral_constant<int, 2>{});
  step(std::integral_constant<int, 1>{});
  return x[0];
#else
  P r;
  ((r.set(I, sum(x[I]))), ...);
  return r;
#endif
}

// sums[i] += the sum of the lanes of x[i], for n numbers i; `x` has room for whole registers of them.
template <class T, int N>
GF_HD void add_sums(Pack<T, N>* x, int64_t n, T* sums) {
  for (int64_t i = 0; i < n; i += N) {
    const Pack<T, N> total = sum_each(x + i, std::make_integer_sequence<int, N>{});
    store_first(sums + i, load_first<Pack<T, N>>(sums + i, static_cast<int>(n - i)) + total, static_cast<int>(n - i));
  }
}

// sums[outer_at(i, j, n)] += sum over rows of x[i] y[j]. Blocks of rows lie x_stride and y_stride apart; x and y have
// room for whole tiles, of which the numbers past the end are finite.
template <class P, class T = scalar_t<P>>
GF_NOINLINE void add_outer(const Packs<P>* x, int64_t x_stride, int64_t m, const Packs<P>* y, int64_t y_stride,
                           int64_t n, int64_t blocks, T* sums) {
  constexpr int kCols = P::size < kOuterTile ? P::size : static_cast<int>(kOuterTile), kRows = P::size / kCols;
  for (int64_t i = 0; i < m; i += kRows)
    for (int64_t j = 0; j < n; j += kCols) {
      P sum[P::size];
      for (int e = 0; e < P::size; ++e) sum[e] = P(0);
      for (int64_t block = 0; block < blocks; ++block) {
        const Packs<P>* xs = x + block * x_stride + i;
        const Packs<P>* ys = y + block * y_stride + j;
        for (int p = 0; p < kPacks; ++p) {
          P across[kCols];
          for (int c = 0; c < kCols; ++c) across[c] = ys[c].v[p];
          for (int r = 0; r < kRows; ++r) {
            const P down = xs[r].v[p];
            for (int c = 0; c < kCols; ++c) sum[r * kCols + c] = fma(down, across[c], sum[r * kCols + c]);
          }
        }
      }
      T* to = sums + outer_at(i, j, n);
      store(to, load<P>(to) + sum_each(sum, std::make_integer_sequence<int, P::size>{}));
    }
}

}  // namespace GF_BACKEND
}  // namespace gf
