// The pseudo-log-likelihood of an RBM on the CPU: kRows rows share the loads of a weight, and a tile of weights stays
// in the second cache for a block of rows.
#include "ops/rbm_pseudo_likelihood/rbm_pseudo_likelihood.h"

#include "common/pack.h"
#include "common/parallel.h"
#include "common/real.h"
#include "common/scratch.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int kRows = 4;
constexpr int64_t kBlock = 64, kTile = 32;  // rows, and visible units

// The product of the lanes.
template <class T, int N>
GF_HD T product_of(Pack<T, N> x) {
  if constexpr (N == 2) {
    return x[0] * x[1];
  } else {
    using Half = std::make_integer_sequence<int, N / 2>;
    return product_of(slice<0>(x, Half{}) * slice<N / 2>(x, Half{}));
  }
}

template <class T>
struct Rows {
  using P = Native<T>;
  using L = Limits<T>;
  using Int = typename P::Int;

  const RbmPseudoLikelihood& f;
  const T* v = static_cast<const T*>(f.v);
  const T* a = static_cast<const T*>(f.vbias);
  const T* x = static_cast<const T*>(f.fields);
  const T* weights = static_cast<const T*>(f.weights);
  const T* row_sums = static_cast<const T*>(f.row_sums);
  T* p = static_cast<T*>(f.workspace);
  T* q = p + f.n * f.nh;

  void probabilities(int64_t begin, int64_t end) const {
    for (int64_t k = begin * f.nh; k < end * f.nh; k += P::size) {
      const int left = static_cast<int>(end * f.nh - k < P::size ? end * f.nh - k : P::size);
      const P field = load_first<P>(x + k, left), t = exp(-abs(field)), w = P(1) / (P(1) + t);
      const auto positive = field > P(0);
      store_first(p + k, select(positive, w, t * w) + (field - field), left);
      store_first(q + k, select(positive, t * w, w), left);
    }
  }

  // x = 2^e m with 1 <= m < 2 for normal positive x; adds e to the exponent.
  static GF_HD P mantissa(P number, typename P::IntVec* exponent) {
    const Int mask = (Int(1) << L::mantissa_bits) - 1;
    const auto bits = as<typename P::IntVec>(number.v);
    const P m(as<typename P::Vec>((bits & mask) | (Int(L::exponent_bias) << L::mantissa_bits)));
    *exponent += (bits >> L::mantissa_bits) - Int(L::exponent_bias);
    return select(number <= P(L::max), m, number);
  }

  // The product over j for one unit and kCount rows, as product[row] 2^exponent[row]; rows are kTile apart.
  template <int kCount>
  void products(int64_t row, int64_t unit, T* GF_RESTRICT product, T* GF_RESTRICT exponent) const {
    const T* first[kCount];
    const T* second[kCount];
    for (int r = 0; r < kCount; ++r) {
      const bool on = v[(row + r) * f.nv + unit] != T(0);
      first[r] = (on ? p : q) + (row + r) * f.nh;
      second[r] = (on ? q : p) + (row + r) * f.nh;
    }
    const T* E = weights + unit * f.nh;
    P acc[kCount];
    typename P::IntVec exponents[kCount];
    for (int r = 0; r < kCount; ++r) {
      acc[r] = P(1);
      exponents[r] = typename P::IntVec{};
    }
    const int64_t whole = f.nh / P::size * P::size, step = f.factors * P::size;
    for (int64_t j0 = 0; j0 < whole; j0 += step) {
      const int64_t end = j0 + step < whole ? j0 + step : whole;
      for (int64_t j = j0; j < end; j += P::size) {
        const P e = load<P>(E + j);
#pragma GCC unroll 4
        for (int r = 0; r < kCount; ++r) acc[r] *= fma(load<P>(second[r] + j), e, load<P>(first[r] + j));
      }
      for (int r = 0; r < kCount; ++r) acc[r] = mantissa(acc[r], &exponents[r]);
    }
    const int left = static_cast<int>(f.nh - whole);
    for (int r = 0; r < kCount; ++r) {
      if (left > 0) {
        const P e = load_first<P>(E + whole, left);
        acc[r] *= fma(load_first<P>(second[r] + whole, left), e, load_first<P>(first[r] + whole, left, T(1)));
        acc[r] = mantissa(acc[r], &exponents[r]);
      }
      product[r * kTile] = product_of(acc[r]);  // below 2^16
      exponent[r * kTile] = sum(P(__builtin_convertvector(exponents[r], typename P::Vec)));
    }
  }

  // The same, as the sum of differences of softplus.
  T difference(int64_t row, int64_t unit) const {
    const T* W = weights + unit * f.nh;
    const T* field = x + row * f.nh;
    const P sign(v[row * f.nv + unit] != T(0) ? T(-1) : T(1));
    P total(0);
    for (int64_t j = 0; j < f.nh; j += P::size) {
      const int left = static_cast<int>(f.nh - j < P::size ? f.nh - j : P::size);
      const P at = load_first<P>(field + j, left), w = load_first<P>(W + j, left);
      total += softplus(fma(sign, w, at)) - softplus(at);
    }
    return sum(total);
  }

  // Adds the terms of units [unit, unit + count) of rows [row, row + kCount).
  template <int kCount>
  void tile(int64_t row, int64_t unit, int64_t count, double* total) const {
    T product[kCount * kTile], exponent[kCount * kTile];
    for (int64_t i = 0; i < count; ++i) {
      if (f.factors > 0) {
        products<kCount>(row, unit + i, product + i, exponent + i);
      } else {
        for (int r = 0; r < kCount; ++r) product[r * kTile + i] = difference(row + r, unit + i);
      }
    }
    for (int r = 0; r < kCount; ++r) {
      const T* state = v + (row + r) * f.nv + unit;
      for (int64_t i = 0; i < count; i += P::size) {
        const int left = static_cast<int>(count - i < P::size ? count - i : P::size);
        const auto on = load_first<P>(state + i, left) != P(0);
        const P bias = load_first<P>(a + unit + i, left), d = load_first<P>(product + r * kTile + i, left, T(1));
        P change = d;
        if (f.factors > 0) {
          const P e = load_first<P>(exponent + r * kTile + i, left);
          change = fma(e, P(static_cast<T>(0.69314718055994530942)), log(d));
          change = select(on, change - load_first<P>(row_sums + unit + i, left), change);
        }
        const P term = softplus(select(on, change - bias, change + bias));
        for (int lane = 0; lane < left; ++lane) total[r] -= static_cast<double>(term[lane]);
      }
    }
  }

  void block(int64_t begin, int64_t end) const {
    probabilities(begin, end);
    double total[kBlock] = {};
    for (int64_t unit = 0; unit < f.nv; unit += kTile) {
      const int64_t count = f.nv - unit < kTile ? f.nv - unit : kTile;
      int64_t row = begin;
      for (; row + kRows <= end; row += kRows) tile<kRows>(row, unit, count, total + (row - begin));
      for (; row < end; ++row) tile<1>(row, unit, count, total + (row - begin));
    }
    for (int64_t row = begin; row < end; ++row) static_cast<T*>(f.out)[row] = static_cast<T>(total[row - begin]);
  }
};

}  // namespace

void rbm_pseudo_likelihood(const RbmPseudoLikelihood& f) {
  // Few rows are cut finer, so that each thread gets some; a row's numbers do not depend on its block.
  const int64_t grain = f.n >= 4 * kBlock ? kBlock : f.n >= 4 * kRows * 2 ? 2 * kRows : 1;
  parallel_for(f.n, grain, [&](int64_t begin, int64_t end) {
    dispatch_real(f.dtype, [&](auto tag) { Rows<typename decltype(tag)::type>{f}.block(begin, end); });
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
