// Affine maps of the channels x of a pixel (ActNorm, the invertible 1x1 convolution, LU layers), and their adjoints,
// written once for every backend.
//
//   u = s x + t,  v = U u,  w = L v,  y_i = w_p(i) + b_i
//   log|det dy/dx| = sum log s + sum log|U_ii|, for each pixel
// with s = exp(log_scale), L lower triangular with a diagonal of ones, U upper triangular and p a permutation; any of
// the parts may be missing. Products and solutions with a triangle cost the same, so neither W = P L U nor its inverse
// is ever formed, and each works in the memory of its argument.
//
// Adjoint. Let y' be the cotangent of y, l that of log|det|, summed over rows and times the pixels of an image; then
//   w'_p(i) = y'_i,  v' = L^T w',  u' = U^T v',  x' = s u'
//   b' = sum y',  t' = sum u',  log_scale' = sum u' s x + l
//   L' = sum w' v^T below the diagonal,  U' = sum v' u^T on it and above
// of which the sums run over all pixels. v is computed again from x. (Summing w' u^T alone would do, since L' = w' u^T
// U^T and U' = L^T w' u^T; but where a solution u is large and v is not, its rounding and its overflow would be
// theirs.)
//
// The inverse is y -> x and -log|det|. By the implicit function theorem the cotangents of the parameters are those
// above at the y' that the adjoint takes to the x' at hand, with the other sign; and y' is that of y:
//   u' = x' / s,  v' = U^-T u',  w' = L^-T v',  y'_i = w'_p(i)
#pragma once

#include "common/real.h"
#include "ops/channel_affine/channel_affine.h"

namespace gf {
inline namespace GF_BACKEND {

template <class T>
GF_HD T saturated(T log_scale) {
  return min(T(kMaxLogScale), max(T(-kMaxLogScale), log_scale));
}
// 1 where it is not saturated.
template <class T>
GF_HD T saturated_slope(T log_scale) {
  return saturated(log_scale) == log_scale ? T(1) : T(0);
}

// A number d of the diagonal, log|d|, and its derivative in the raw parameter; that of d is d times it.
template <class T>
struct Diagonal {
  T d, log_abs, slope;
};

template <class T>
GF_HD Diagonal<T> channel_diagonal(const ChannelMap& f, T raw, T sign) {
  if (f.softplus) {
    const T d = softplus(raw) + static_cast<T>(f.min_diag);
    return {d, log(d), sigmoid(raw) / d};
  }
  const T log_abs = saturated(raw), sgn = sign > T(0) ? T(1) : sign < T(0) ? T(-1) : sign;
  return {sgn * exp(log_abs), sign == T(0) ? -T(__builtin_huge_val()) : log_abs + (sgn - sgn), saturated_slope(raw)};
}

// z = M z, or M^-1 z (kSolve), for a triangle M: m(i, j) is its entry, those on the diagonal are diag[i], or their
// inverses for kSolve; null: ones. z(i) is a reference; there are `padded` of them.
template <bool kUpper, bool kSolve, int kRows, class R, class M, class T, class Z>
GF_ROWS void triangle(int64_t padded, const M& m, const T* diag, Z&& z) {
  static_assert(kChannelGroup % kRows == 0, "");
  constexpr bool kAscending = kUpper != kSolve;
  for (int64_t b = 0; b < padded; b += kRows) {
    const int64_t i = kAscending ? b : padded - kRows - b;
    R sum[kRows];
    for (int r = 0; r < kRows; ++r) sum[r] = R(0);
    const int64_t end = kUpper ? padded : i;
    for (int64_t j = kUpper ? i + kRows : 0; j < end; ++j) {
      const R& x = z(j);
      for (int r = 0; r < kRows; ++r) sum[r] = fma(R(m(i + r, j)), x, sum[r]);
    }
    for (int q = 0; q < kRows; ++q) {  // a product needs the others as they were, a solution as they have become
      const int r = kAscending ? q : kRows - 1 - q;
      const R scale(diag != nullptr ? diag[i + r] : T(1));
      for (int s = kUpper ? r + 1 : 0; s < (kUpper ? kRows : r); ++s)
        sum[r] = fma(R(m(i + r, i + s)), z(i + s), sum[r]);
      z(i + r) = kSolve ? scale * (z(i + r) - sum[r]) : fma(scale, z(i + r), sum[r]);
    }
  }
}

// What the sums over pixels give (channel_sums), with the signs of the forward: L' below the diagonal of `weights`, U'
// above, d d' on it; and the others.
template <class T>
struct ChannelTotals {
  const T *weights, *bias, *log_scale, *shift, *log_det;

  GF_HD ChannelTotals(const ChannelMap& f, const T* sums)
      : weights(sums),
        bias(sums + (f.lower != nullptr ? f.c * f.c : 0)),
        log_scale(bias + f.c),
        shift(log_scale + f.c),
        log_det(shift + f.c) {}
};

template <class T>
GF_HD T grad_of_log_scale(const ChannelMap& f, const ChannelTotals<T>& sums, int64_t i, T log_scale) {
  const T total = fma(static_cast<T>(f.image()), *sums.log_det, sums.log_scale[i]) * saturated_slope(log_scale);
  return f.inverse ? -total : total;
}

template <class T>
GF_HD T grad_of_diagonal(const ChannelMap& f, const ChannelTotals<T>& sums, int64_t i, const Diagonal<T>& diagonal) {
  const T total = diagonal.slope * fma(static_cast<T>(f.image()), *sums.log_det, sums.weights[i * f.c + i]);
  return f.inverse ? -total : total;
}

}  // namespace GF_BACKEND
}  // namespace gf
