// Splines of polynomial pieces on CUDA: one thread a number. A block stages the rows of its numbers through shared
// memory, so that global memory is read and written in whole lines, and half types are converted on the way.
#include "common/launch.cuh"
#include "ops/poly_spline/poly_spline_math.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int kThreads = 128;

// Rows in shared memory lie an odd number of words apart, so that threads reading a column meet no bank twice.
GF_HD int pitch(int size) { return size | 1; }

template <class S, PolyKind kKind, bool kInverse, bool kBackward>
__global__ __launch_bounds__(kThreads) void poly_spline_kernel(PolyArrays<S> a, int64_t n, int size, int at_once,
                                                               PolyConstants<compute_t<S>> c) {
  using T = compute_t<S>;
  T* tile = dynamic_shared<T>();
  T* grads = tile + at_once * pitch(size);
  const int t = threadIdx.x;
  for (int64_t first = int64_t(blockIdx.x) * at_once; first < n; first += int64_t(gridDim.x) * at_once) {
    const int count = static_cast<int>(n - first < at_once ? n - first : at_once);
    for (int i = t; i < count * size; i += kThreads)
      tile[i / size * pitch(size) + i % size] = to_real(a.params[first * size + i]);
    __syncthreads();
    if (t < count) {
      const int64_t i = first + t;
      T y = 0, log_det = 0;
      if constexpr (kBackward) y = to_real(a.grad_y[i]), log_det = a.grad_log_det[i];
      poly_number<kKind, kInverse, kBackward>(to_real(a.x[i]), tile + t * pitch(size),
                                              kBackward ? grads + t * pitch(size) : nullptr, &y, &log_det, c);
      a.y[i] = from_real<S>(y);
      if constexpr (!kBackward) a.log_det[i] = log_det;
    }
    __syncthreads();
    if constexpr (kBackward) {
      for (int i = t; i < count * size; i += kThreads)
        a.grad_params[first * size + i] = from_real<S>(grads[i / size * pitch(size) + i % size]);
      __syncthreads();
    }
  }
}

template <class S, bool kBackward>
void run(const PolyArrays<S>& a, int64_t n, int64_t size, const PolySplineOptions& o, Stream stream) {
  using T = compute_t<S>;
  const auto c = poly_constants<T>(o, size);
  constexpr std::size_t kMemory = 48 * 1024;
  const std::size_t row = pitch(static_cast<int>(size)) * sizeof(T) * (kBackward ? 2 : 1);
  const int at_once = static_cast<int>(kMemory / row < kThreads ? kMemory / row : kThreads);
  const auto start = [&](auto kernel) {
    launch(kBackward ? "poly_spline_backward" : "poly_spline_forward", kernel, blocks_for(n, at_once), kThreads,
           at_once * row, stream, a, n, static_cast<int>(size), at_once, c);
  };
  switch (o.kind) {
    case PolyKind::linear:
      return start(o.inverse ? poly_spline_kernel<S, PolyKind::linear, true, kBackward>
                             : poly_spline_kernel<S, PolyKind::linear, false, kBackward>);
    case PolyKind::quadratic:
      return start(o.inverse ? poly_spline_kernel<S, PolyKind::quadratic, true, kBackward>
                             : poly_spline_kernel<S, PolyKind::quadratic, false, kBackward>);
    case PolyKind::cubic:
      return start(o.inverse ? poly_spline_kernel<S, PolyKind::cubic, true, kBackward>
                             : poly_spline_kernel<S, PolyKind::cubic, false, kBackward>);
  }
}

}  // namespace

void poly_spline_forward(const PolySplineForward& f) {
  dispatch_float(f.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    PolyArrays<S> a{};
    a.x = static_cast<const S*>(f.x), a.params = static_cast<const S*>(f.params);
    a.y = static_cast<S*>(f.y), a.log_det = static_cast<compute_t<S>*>(f.log_det);
    run<S, false>(a, f.n, f.size, f.options, f.stream);
  });
}

void poly_spline_backward(const PolySplineBackward& f) {
  dispatch_float(f.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    PolyArrays<S> a{};
    a.x = static_cast<const S*>(f.x), a.params = static_cast<const S*>(f.params);
    a.grad_y = static_cast<const S*>(f.grad_y), a.grad_log_det = static_cast<const compute_t<S>*>(f.grad_log_det);
    a.y = static_cast<S*>(f.grad_x), a.grad_params = static_cast<S*>(f.grad_params);
    run<S, true>(a, f.n, f.size, f.options, f.stream);
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
