// The definition of a Gibbs chain's draws, to the last bit. Everything here is float32 addition and multiplication,
// correctly rounded and in a fixed order, and integer arithmetic: every backend draws the same states.
//
// Weights. With every magnitude of the weights W and the biases below 2^E and n the most weights that a unit has, the
// bound
//   floor(|x| 2^(r - E)) + 1,  r = 30 - ceil(log2(n + 1)),
// is summed over the weights and the bias of each unit (of an RBM's W: its rows and its columns); B is the largest sum.
// Integers and maxima do not depend on the order. k is the largest number with 2^k B + n + 1 <= 2^31 - 1. Of W alone,
// with every magnitude below 2^F, c = F - 23, or F - 22 where the largest would round to more than 0x7F7F7F (three
// signed bytes, the tensor cores' operands). Then e = max(E - r - k, c, -100), and the chain uses x_q = round(x 2^-e),
// half to even: no sum of any subset of a row or column leaves int32.
//
// Acceptance. z = (float(field) * float(2^min(e, 100))) * beta. The less likely state has probability t / (1 + t),
// t = exp(-|z|), and is taken where u (1 + t) < t with u = float(word >> 1) 2^-31 + 2^-32.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/macros.h"

namespace gf {
inline namespace GF_BACKEND {

#if defined(__CUDA_ARCH__)
GF_HD float rounded_mul(float a, float b) { return __fmul_rn(a, b); }
GF_HD float rounded_add(float a, float b) { return __fadd_rn(a, b); }
#else
// The files that include this are compiled with -ffp-contract=off (UNCONTRACTED_KERNELS in CMakeLists.txt).
template <class F>
GF_HD F rounded_mul(F a, F b) {
  return a * b;
}
template <class F>
GF_HD F rounded_add(F a, F b) {
  return a + b;
}
#endif

// The types of one lane.
struct ScalarLane {
  using F = float;
  using I = int32_t;
  using U = uint32_t;
  static GF_HD F splat(float x) { return x; }
  static GF_HD F to_float(I x) { return static_cast<float>(x); }
  static GF_HD F bits_to_float(I x) { return bit_cast<float>(x); }
  static GF_HD I float_to_bits(F x) { return bit_cast<int32_t>(x); }
  static GF_HD bool greater(F a, F b) { return a > b; }
};

// exp(-a), a >= 0, within 2e-7: n = rint(a / ln 2), f = n ln 2 - a, 2^-n exp(f). a is clamped to 80.
template <class L>
GF_HD typename L::F exp_negative(typename L::F a) {
  using F = typename L::F;
  using I = typename L::I;
  const F limit = L::splat(80.0f);
  a = L::greater(a, limit) ? limit : a;
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  const F shifted = rounded_add(rounded_mul(a, L::splat(0x1.715476p0f)), L::splat(12582912.0f));
  const F n = rounded_add(shifted, L::splat(-12582912.0f));
  const F f =
      rounded_add(rounded_add(rounded_mul(n, L::splat(0.693359375f)), -a), rounded_mul(n, L::splat(-0x1.bd0106p-13f)));
  F p = rounded_add(rounded_mul(f, L::splat(0x1.10627ap-7f)), L::splat(0x1.572a06p-5f));
  p = rounded_add(rounded_mul(p, f), L::splat(0x1.5557aep-3f));
  p = rounded_add(rounded_mul(p, f), L::splat(0x1.fffdfcp-2f));
  p = rounded_add(rounded_mul(rounded_mul(p, f), f), f);
  const I power = (0x4B400000 + 127 - L::float_to_bits(shifted)) << 23;  // 2^-n
  return rounded_mul(rounded_add(p, L::splat(1.0f)), L::bits_to_float(power));
}

// t = exp(-|z|): the odds of the less likely state.
template <class L>
GF_HD typename L::F odds_against(typename L::F z) {
  return exp_negative<L>(L::greater(L::splat(0.0f), z) ? -z : z);
}

// The new state of a unit from its logit z and t: a bool, or a vector of 0 and -1.
template <class L>
GF_HD auto gibbs_accept_logit(typename L::F z, typename L::F t, typename L::U word) {
  using F = typename L::F;
  const F u = rounded_add(rounded_mul(L::to_float((typename L::I)(word >> 1)), L::splat(0x1p-31f)), L::splat(0x1p-32f));
  return L::greater(z, L::splat(0.0f)) != L::greater(t, rounded_mul(u, rounded_add(L::splat(1.0f), t)));
}

// The same from its integer field.
template <class L>
GF_HD auto gibbs_accept(typename L::I field, float scale, typename L::F beta, typename L::U word) {
  using F = typename L::F;
  const F z = rounded_mul(rounded_mul(L::to_float(field), L::splat(scale)), beta);
  return gibbs_accept_logit<L>(z, odds_against<L>(z), word);
}

// --- weights in fixed point

// The bits of |x| as an integer: ordered like |x|, with infinity and NaN above all numbers.
GF_HD uint32_t magnitude_bits(float x) { return bit_cast<uint32_t>(x) & 0x7fffffffu; }
GF_HD uint64_t magnitude_bits(double x) { return bit_cast<uint64_t>(x) & 0x7fffffffffffffffu; }

constexpr uint64_t kInfinityBits = 0x7ff0000000000000u;  // of a double

// Half to even, for |x| < 2^31: the difference to the truncated number is exact.
template <class T>
GF_HD int32_t round_even(T x) {
  const int32_t q = static_cast<int32_t>(x);
  const T rest = x - static_cast<T>(q);
  const int odd = q & 1;
  const int up = (rest > T(0.5)) | ((rest == T(0.5)) & odd);
  const int down = (rest < T(-0.5)) | ((rest == T(-0.5)) & odd);
  return q + up - down;
}

// 2^e, for exponents of normal numbers.
template <class T>
GF_HD T power_of_two(int e) {
  if constexpr (sizeof(T) == 4)
    return bit_cast<T>(static_cast<uint32_t>(e + 127) << 23);
  else
    return bit_cast<T>(static_cast<uint64_t>(e + 1023) << 52);
}

GF_HD int bit_length(int64_t x) {
  int n = 0;
  for (; x > 0; x >>= 1) ++n;
  return n;
}

// The scale of the bounds: they are floor(|x| 2^(r - E)) + 1.
struct FixedPointScale {
  int64_t n;
  int exponent, r;  // E and r

  // `largest`: the magnitude bits, as a double, of the largest weight or bias; `weights`: n above.
  GF_HD FixedPointScale(uint64_t largest, int64_t weights) {
    n = weights > 1 ? weights : 1;
    r = 30 - bit_length(n);
    exponent = static_cast<int>(largest >> 52) - 1022;
    exponent = exponent < -90 ? -90 : exponent;
  }

  template <class T>
  GF_HD T unit() const {
    return power_of_two<T>(r - exponent);
  }

  // e, from the largest sum of bounds and the magnitude bits of the largest of W.
  GF_HD int fixed_point_exponent(int64_t largest_sum, uint64_t largest_weight) const {
    const int k = bit_length((int64_t{0x7ffffffe} - n) / (largest_sum > 0 ? largest_sum : 1)) - 1;
    int e = exponent - r - k;
    int c = static_cast<int>(largest_weight >> 52) - 1022 - 23;
    if (c > -100 && round_even(bit_cast<double>(largest_weight) * power_of_two<double>(-c)) > 0x7F7F7F) ++c;
    e = e < c ? c : e;
    return e < -100 ? -100 : e;
  }
};

template <class T>
GF_HD int32_t fixed_point_bound(T x, T unit) {
  return static_cast<int32_t>((x < 0 ? -x : x) * unit) + 1;
}

}  // namespace GF_BACKEND
}  // namespace gf
