// Largest errors of the functions of real.h on packs, in units in the last place, against the C library in a wider
// type. Prints one line a function: name, type, error, the argument where it occurs.
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "common/normal.h"

using namespace gf;

template <class T>
double ulps(T got, long double want) {
  if (std::isnan(got) && std::isnan(want)) return 0;
  const T nearest = static_cast<T>(want);
  if (got == nearest) return 0;
  if (std::isnan(got) || std::isnan(want) || std::isinf(got) || std::isinf(nearest)) return 1e30;
  const T magnitude = std::fmax(std::fabs(nearest), Limits<T>::min_normal);
  const T ulp = std::nextafter(magnitude, static_cast<T>(INFINITY)) - magnitude;
  return static_cast<double>(fabsl(static_cast<long double>(got) - want) / ulp);
}

template <class T>
T argument(uint64_t i);
// Every 2^10-th float of all there are, infinities and NaN among them.
template <>
float argument<float>(uint64_t i) {
  return bit_cast<float>(static_cast<uint32_t>(i * 1024 + i % 1024));
}
template <>
double argument<double>(uint64_t i) {
  return bit_cast<double>((i << 42) + i * 1234567);
}

template <class T, class F, class G>
void check(const char* name, F f, G exact) {
  using P = Native<T>;
  double worst = 0;
  T where = 0;
  const uint64_t count = uint64_t(1) << 22;
  for (uint64_t i = 0; i < count; i += P::size) {
    P x;
    for (int j = 0; j < P::size; ++j) x.set(j, argument<T>(i + j));
    const P y = f(x);
    for (int j = 0; j < P::size; ++j) {
      const double e = ulps<T>(y[j], exact(static_cast<long double>(x[j])));
      if (!(e <= worst)) worst = e, where = x[j];
    }
  }
  std::printf("%s %s %.3g %.9g\n", name, sizeof(T) == 4 ? "float32" : "float64", worst, static_cast<double>(where));
}

// e^(a^2 / 2) Phi(-a): by erfc, and where its exponent takes digits by the asymptotic series.
long double normal_tail_exactly(long double a) {
  if (!(a >= 0)) return NAN;
  if (a < 25) return expl(a * a / 2) * erfcl(a * sqrtl(0.5L)) / 2;
  long double series = 1;
  for (int k = 25; k > 0; k -= 2) series = 1 - k / (a * a) * series;
  return series / (a * sqrtl(2 * acosl(-1.0L)));
}

// The a of log Phi(-a) = log_p, a Newton step from `near`.
long double normal_quantile_exactly(long double log_p, long double near) {
  const long double tail = normal_tail_exactly(near);
  return near + (logl(tail) - near * near / 2 - log_p) * tail * sqrtl(2 * acosl(-1.0L));
}

// Quantiles, in ulp of the larger of a and 1.
template <class T>
void check_quantile() {
  using P = Native<T>;
  double worst = 0;
  T where = 0;
  for (int i = 0; i < 1 << 16; ++i) {
    const long double a = i < (1 << 15) ? i * 0x1p-12L : expl((i - (1 << 15)) * 1e-3L);
    const T log_p = static_cast<T>(logl(normal_tail_exactly(a)) - a * a / 2);
    if (!(log_p <= -0.6931472 && log_p >= -Limits<T>::max)) continue;
    const T got = normal_tail_quantile(P(log_p))[0];
    const long double want = normal_quantile_exactly(log_p, a), unit = fmaxl(want, 1) * Limits<T>::epsilon;
    const double e = static_cast<double>(fabsl(got - want) / unit);
    if (!(e <= worst)) worst = e, where = log_p;
  }
  std::printf("normal_tail_quantile %s %.3g %.9g\n", sizeof(T) == 4 ? "float32" : "float64", worst,
              static_cast<double>(where));
}

template <class T>
void check_all() {
  using P = Native<T>;
  using L = long double;
  check<T>("abs", [](P x) { return abs(x); }, [](L x) { return fabsl(x); });
  check<T>("sqrt", [](P x) { return sqrt(x); }, [](L x) { return sqrtl(x); });
  check<T>("exp", [](P x) { return exp(x); }, [](L x) { return expl(x); });
  check<T>("expm1", [](P x) { return expm1(x); }, [](L x) { return expm1l(x); });
  check<T>("log", [](P x) { return log(x); }, [](L x) { return logl(x); });
  check<T>("log1p", [](P x) { return log1p(x); }, [](L x) { return log1pl(x); });
  check<T>("tanh", [](P x) { return tanh(x); }, [](L x) { return tanhl(x); });
  check<T>("atan", [](P x) { return atan(x); }, [](L x) { return atanl(x); });
  check<T>("softplus", [](P x) { return softplus(x); }, [](L x) { return (x > 0 ? x : 0) + log1pl(expl(-fabsl(x))); });
  check<T>("normal_tail", [](P x) { return normal_tail(abs(x)); }, [](L x) { return normal_tail_exactly(fabsl(x)); });
  check_quantile<T>();
  check<T>("sigmoid", [](P x) { return sigmoid(x); }, [](L x) { return 1 / (1 + expl(-x)); });
}

// The conversions of half types, over all of them, against the definition of the formats.
int check_half() {
  int wrong = 0;
  for (uint32_t b = 0; b < 65536; ++b) {
    const Half h{static_cast<uint16_t>(b)};
    const int e = (b >> 10) & 31, m = b & 1023;
    const double sign = b >> 15 ? -1 : 1;
    const float f = to_real(h);
    const double want = e == 31 ? (m ? NAN : INFINITY) : e == 0 ? std::ldexp(m, -24) : std::ldexp(1024 + m, e - 25);
    wrong += !(std::isnan(want) ? std::isnan(f) : f == sign * want && std::signbit(f) == (sign < 0));
    wrong += !std::isnan(want) && from_real<Half>(f).bits != b;
    wrong += std::isnan(want) && !std::isnan(to_real(from_real<Half>(f)));
    if (e < 31) {  // halfway to the next number up goes to the even one, a little more or less to the nearer one
      const float next = to_real(Half{static_cast<uint16_t>(b + 1)});
      const double step = std::ldexp(1, e == 0 ? -24 : e - 25) * sign;
      const float halfway = static_cast<float>(f + step / 2);
      wrong += from_real<Half>(halfway).bits != (b & 1 ? b + 1 : b);
      wrong += from_real<Half>(std::nextafter(halfway, f)).bits != b;
      wrong += from_real<Half>(std::nextafter(halfway, next)).bits != b + 1;
    }
    const BFloat16 w{static_cast<uint16_t>(b)};
    const float g = to_real(w);
    wrong += !std::isnan(g) && from_real<BFloat16>(g).bits != b;
    wrong += std::isnan(g) && !std::isnan(to_real(from_real<BFloat16>(g)));
  }
  Half in[64], out[64];
  using P = Native<float>;
  for (int i = 0; i < 64; ++i) in[i].bits = static_cast<uint16_t>(i * 977);
  for (int i = 0; i < 64; i += P::size) store(out + i, load<P>(in + i));
  for (int i = 0; i < 64; ++i) wrong += !std::isnan(to_real(in[i])) && in[i].bits != out[i].bits;
  return wrong;
}

int main() {
  check_all<float>();
  check_all<double>();
  std::printf("half exact %d 0\n", check_half());
  float lanes[64];
  for (int i = 0; i < 64; ++i) lanes[i] = static_cast<float>(i);
  using P = Native<float>;
  std::printf("sum exact %g 0\n", std::fabs(sum(load<P>(lanes)) - P::size * (P::size - 1) / 2.0));
  return 0;
}
