// Splines of polynomial pieces on the CPU. Lanes are numbers: the rows of parameters of a register's worth of them are
// transposed into columns, and all is computed there. Incomplete blocks and half types pass through a buffer of full
// rows in the compute type.
#include <type_traits>

#include "common/parallel.h"
#include "common/scratch.h"
#include "common/tile.h"
#include "ops/poly_spline/poly_spline_math.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int64_t kGrain = 1024;

// A register's worth of numbers; in the backward y and log_det are cotangents, and y becomes the gradient of x.
template <class T>
struct Numbers {
  const T *x, *params;
  T *y, *log_det, *grad_params;
  int size;  // of a row
};

template <class P, class T>
GF_NOINLINE void load_rows(const T* rows, int size, P* columns) {
  load_columns<P::size>(rows, size, size, columns);
}
template <class P, class T>
GF_NOINLINE void store_rows(T* rows, int size, const P* columns) {
  store_columns<P::size>(rows, size, size, columns);
}

template <PolyKind kKind, bool kInverse, bool kBackward, class T>
void block(const Numbers<T>& f, Native<T>* columns, const PolyConstants<T>& c) {
  using P = Native<T>;
  P y(0), log_det(0);
  if (kBackward) y = load<P>(f.y), log_det = load<P>(f.log_det);
  load_rows(f.params, f.size, columns);
  poly_number<kKind, kInverse, kBackward>(load<P>(f.x), columns, columns + f.size, &y, &log_det, c);
  store(f.y, y);
  if (kBackward)
    store_rows(f.grad_params, f.size, columns + f.size);
  else
    store(f.log_det, log_det);
}

template <class T>
using Block = void (*)(const Numbers<T>&, Native<T>*, const PolyConstants<T>&);

template <PolyKind kKind, class T>
Block<T> block_of(bool inverse, bool backward) {
  if (inverse) return backward ? block<kKind, true, true, T> : block<kKind, true, false, T>;
  return backward ? block<kKind, false, true, T> : block<kKind, false, false, T>;
}

template <class T>
Block<T> choose_block(const PolySplineOptions& o, bool backward) {
  switch (o.kind) {
    case PolyKind::linear:
      return block_of<PolyKind::linear, T>(o.inverse, backward);
    case PolyKind::quadratic:
      return block_of<PolyKind::quadratic, T>(o.inverse, backward);
    default:
      return block_of<PolyKind::cubic, T>(o.inverse, backward);
  }
}

template <class S>
void rows(Block<compute_t<S>> block, const PolyArrays<S>& a, int size, const PolyConstants<compute_t<S>>& c,
          int64_t begin, int64_t end) {
  using T = compute_t<S>;
  using P = Native<T>;
  constexpr int kLanes = P::size;
  const bool backward = a.grad_params != nullptr;
  Scratch<P> columns(2 * size);
  Scratch<T> memory(kLanes * (2 * size + 3));
  T *x = memory.get(), *y = x + kLanes, *log_det = y + kLanes, *params = log_det + kLanes;
  T* grad = params + kLanes * size;
  const Numbers<T> buffer{x, params, y, log_det, grad, size};
  for (int64_t i = begin; i < end; i += kLanes) {
    const int64_t count = end - i < kLanes ? end - i : kLanes;
    Numbers<T> f = buffer;
    const bool whole = std::is_same<S, T>::value && count == kLanes;
    if constexpr (std::is_same<S, T>::value) {
      if (whole) {
        f.x = a.x + i, f.params = a.params + i * size;
        if (!backward) f.y = a.y + i, f.log_det = a.log_det + i;
        if (backward) f.grad_params = a.grad_params + i * size;
      }
    }
    if (!whole) {
      for (int64_t j = 0; j < kLanes * (size + 3); ++j) memory.get()[j] = 0;
      for (int64_t j = 0; j < count; ++j) x[j] = to_real(a.x[i + j]);
      for (int64_t j = 0; j < count * size; ++j) params[j] = to_real(a.params[i * size + j]);
    }
    if (backward) {
      for (int64_t j = 0; j < count; ++j) y[j] = to_real(a.grad_y[i + j]), log_det[j] = a.grad_log_det[i + j];
    }
    block(f, columns.get(), c);
    if (f.y == y)
      for (int64_t j = 0; j < count; ++j) a.y[i + j] = from_real<S>(y[j]);
    if (!backward && f.log_det == log_det)
      for (int64_t j = 0; j < count; ++j) a.log_det[i + j] = log_det[j];
    if (backward && !whole)
      for (int64_t j = 0; j < count * size; ++j) a.grad_params[i * size + j] = from_real<S>(grad[j]);
  }
}

template <class S>
void run(const PolyArrays<S>& a, int64_t n, int64_t size, const PolySplineOptions& o) {
  using T = compute_t<S>;
  const auto c = poly_constants<T>(o, size);
  const Block<T> block = choose_block<T>(o, a.grad_params != nullptr);
  parallel_for(n, kGrain, [&](int64_t begin, int64_t end) { rows(block, a, static_cast<int>(size), c, begin, end); });
}

}  // namespace

void poly_spline_forward(const PolySplineForward& f) {
  dispatch_float(f.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    PolyArrays<S> a{};
    a.x = static_cast<const S*>(f.x), a.params = static_cast<const S*>(f.params);
    a.y = static_cast<S*>(f.y), a.log_det = static_cast<compute_t<S>*>(f.log_det);
    run(a, f.n, f.size, f.options);
  });
}

void poly_spline_backward(const PolySplineBackward& f) {
  dispatch_float(f.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    PolyArrays<S> a{};
    a.x = static_cast<const S*>(f.x), a.params = static_cast<const S*>(f.params);
    a.grad_y = static_cast<const S*>(f.grad_y), a.grad_log_det = static_cast<const compute_t<S>*>(f.grad_log_det);
    a.y = static_cast<S*>(f.grad_x), a.grad_params = static_cast<S*>(f.grad_params);
    run(a, f.n, f.size, f.options);
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
