// log|x_1 x_2 ...| for the price of one logarithm: the product of the mantissas, and the sum of the exponents, so that
// nothing overflows. The factors are normal numbers, 0, infinite or NaN.
#pragma once

#include "real.h"

namespace gf {
inline namespace GF_BACKEND {

// A GPU has a logarithm for about as many instructions.
template <class R>
class LogProduct {
 public:
  GF_HD void multiply(R x) { sum_ += log(abs(x)); }
  GF_HD R log_abs() const { return sum_; }

 private:
  R sum_ = R(0);
};

#if !defined(__CUDACC__)

template <class T, int N>
class LogProduct<Pack<T, N>> {
  using P = Pack<T, N>;
  using I = typename P::IntVec;
  using L = Limits<T>;

 public:
  GF_HD void multiply(P x) {
    product_ = product_ * mantissa(abs(x));
    if (++factors_ % kMost == 0) product_ = mantissa(product_);
  }
  GF_HD P log_abs() const {
    using C = ExpConstants<T>;
    const P e(__builtin_convertvector(exponent_, typename P::Vec));
    return fma(e, P(C::hi), fma(e, P(C::lo), log(product_)));
  }

 private:
  static constexpr int kMost = L::exponent_bias - 1;  // factors below 2 of which the product is finite

  // x = 2^e m with 1 <= m < 2; adds e to the exponent. Zero, infinity and NaN are their own mantissa.
  GF_HD P mantissa(P x) {
    const typename P::Int mask = (typename P::Int(1) << L::mantissa_bits) - 1;
    const I bits = as<I>(x.v);
    const P m(as<typename P::Vec>((bits & mask) | (typename P::Int(L::exponent_bias) << L::mantissa_bits)));
    exponent_ += (bits >> L::mantissa_bits) - typename P::Int(L::exponent_bias);
    return select((x > P(0)) & (x <= P(L::max)), m, x);
  }

  P product_ = P(1);
  I exponent_ = {};
  int factors_ = 0;
};

#endif

}  // namespace GF_BACKEND
}  // namespace gf
