// Rational-quadratic spline on CUDA: one thread a number. For the common numbers of bins a block stages the logits of
// its numbers through shared memory, so that global memory is read and written in whole lines and each thread keeps its
// exponentials in registers. For any other number, and other types than float32, threads read their rows in place.
#include <type_traits>

#include "common/launch.cuh"
#include "ops/rq_spline/rq_spline_arrays.h"
#include "ops/rq_spline/rq_spline_math.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int kThreads = 128;

// Exponentials of a row of logits that are computed whenever they are asked for.
template <class S>
struct LazyExponentials {
  using T = compute_t<S>;
  const S* logits;
  T top;
  GF_HD T operator[](int j) const { return exp(to_real(logits[j]) - top); }
};

template <class S, class T = compute_t<S>>
__device__ T start_lazily(LazyExponentials<S>& e, const S* logits, int bins) {
  e.logits = logits;
  e.top = to_real(logits[0]);
  for (int j = 1; j < bins; ++j) e.top = max(e.top, to_real(logits[j]));
  T sum = 0;
  for (int j = 0; j < bins; ++j) sum += e[j];
  return T(1) / sum;
}

// Rows of a tile lie an odd number of words apart, so that threads reading a column meet no bank twice.
template <int kBins>
constexpr int kPitch = kBins | 1;

template <int kBins>
__device__ void stage(float* tile, const float* rows, int64_t stride, int count) {
  for (int i = threadIdx.x; i < count * kBins; i += kThreads)
    tile[i / kBins * kPitch<kBins> + i % kBins] = rows[i / kBins * stride + i % kBins];
}
template <int kBins>
__device__ void unstage(const float* tile, float* rows, int64_t stride, int count) {
  for (int i = threadIdx.x; i < count * kBins; i += kThreads)
    rows[i / kBins * stride + i % kBins] = tile[i / kBins * kPitch<kBins> + i % kBins];
}

template <class T>
struct Ends {
  RqSlope<T> low, high;
};

template <class S, class T>
__device__ Ends<T> load_slopes(const S* d, int slopes, int k, const RqConstants<T>& c) {
  T low = 0, high = 0;
  if (slopes > 0) {
    low = to_real(d[k > 0 ? k - 1 : 0]);
    high = to_real(d[k < slopes ? k : slopes - 1]);
  }
  return {rq_slope(low, k == 0, c), rq_slope(high, k == c.bins - 1 && !c.outer_slope, c)};
}

template <bool kInverse, class S, class T>
__device__ void finish_forward(const Arrays<S>& a, int64_t i, const S* d, int slopes, const RqBin<T>& bin,
                               const RqConstants<T>& c) {
  const Ends<T> s = load_slopes(d, slopes, bin.k, c);
  const RqPoint<T> p = rq_evaluate<kInverse>(bin, s.low.d, s.high.d, c);
  const T v = to_real(a.x[i]);
  const bool inside = v >= -c.axis.bound && v <= c.axis.bound;
  a.y[i] = from_real<S>(inside ? p.y : v);
  a.log_det[i] = inside ? p.log_det : v == v ? T(0) : v;
}

template <bool kInverse, class S, class T>
__device__ RqAdjoint<T> finish_backward(const Arrays<S>& a, int64_t i, const S* d, S* grad_d, int slopes,
                                        const RqBin<T>& bin, const RqConstants<T>& c) {
  const Ends<T> s = load_slopes(d, slopes, bin.k, c);
  const RqPoint<T> p = rq_evaluate<kInverse>(bin, s.low.d, s.high.d, c);
  const T v = to_real(a.x[i]), grad_y = to_real(a.grad_y[i]);
  const bool inside = v >= -c.axis.bound && v <= c.axis.bound;
  const RqAdjoint<T> g = rq_adjoint<kInverse>(p, inside ? grad_y : T(0), inside ? a.grad_log_det[i] : T(0));
  a.grad_x[i] = from_real<S>(inside ? g.v : grad_y);
  const T low = g.d0 * s.low.derivative, high = g.d1 * s.high.derivative;
  for (int j = 0; j < slopes; ++j) grad_d[j] = from_real<S>(j == bin.k - 1 ? low : j == bin.k ? high : T(0));
  return g;
}

// The number whose bin is sought: where the map is the identity, any number will do.
template <class T>
__device__ T inner(T v, const RqConstants<T>& c) {
  return v >= -c.axis.bound && v <= c.axis.bound ? v : T(0);
}

template <int kBins, bool kInverse, bool kBackward>
__global__ __launch_bounds__(kThreads) void rq_spline_tiled(Arrays<float> a, RqSplineSizes z, RqConstants<float> c) {
  GF_SHARED(float, tile_w, [kThreads * kPitch<kBins>]);
  GF_SHARED(float, tile_h, [kThreads * kPitch<kBins>]);
  const int t = threadIdx.x, slopes = static_cast<int>(z.slopes);
  for (int64_t first = int64_t(blockIdx.x) * kThreads; first < z.n; first += int64_t(gridDim.x) * kThreads) {
    const int count = static_cast<int>(z.n - first < kThreads ? z.n - first : kThreads);
    stage<kBins>(tile_w, a.w + first * z.stride_w, z.stride_w, count);
    stage<kBins>(tile_h, a.h + first * z.stride_h, z.stride_h, count);
    __syncthreads();
    if (t < count) {
      const int64_t i = first + t;
      float* row_w = tile_w + t * kPitch<kBins>;
      float* row_h = tile_h + t * kPitch<kBins>;
      float e_w[kBins], e_h[kBins];
      GF_UNROLL
      for (int j = 0; j < kBins; ++j) {
        e_w[j] = row_w[j];
        e_h[j] = row_h[j];
      }
      const float r_w = rq_exponentials<kBins>(e_w, kBins), r_h = rq_exponentials<kBins>(e_h, kBins);
      const RqBin<float> bin = rq_locate<kBins, kInverse>(inner(a.x[i], c), e_w, e_h, r_w, r_h, c);
      const float* d = a.d + i * z.stride_d;
      if constexpr (kBackward) {
        const RqAdjoint<float> g = finish_backward<kInverse>(a, i, d, a.grad_d + i * z.stride_d, slopes, bin, c);
        rq_softmax_adjoint<kBins>(e_w, bin.k, bin.scale_w, r_w, g.x, g.w, bin.e_w, c,
                                  [&](int j, float v) { row_w[j] = v; });
        rq_softmax_adjoint<kBins>(e_h, bin.k, bin.scale_h, r_h, g.y, g.h, bin.e_h, c,
                                  [&](int j, float v) { row_h[j] = v; });
      } else {
        finish_forward<kInverse>(a, i, d, slopes, bin, c);
      }
    }
    __syncthreads();
    if constexpr (kBackward) {
      unstage<kBins>(tile_w, a.grad_w + first * z.stride_w, z.stride_w, count);
      unstage<kBins>(tile_h, a.grad_h + first * z.stride_h, z.stride_h, count);
      __syncthreads();
    }
  }
}

template <class S, bool kInverse, bool kBackward>
__global__ __launch_bounds__(kThreads, 4) void rq_spline_rows(Arrays<S> a, RqSplineSizes z,
                                                              RqConstants<compute_t<S>> c) {
  using T = compute_t<S>;
  const int slopes = static_cast<int>(z.slopes);
  for (int64_t i = grid_thread(); i < z.n; i += grid_threads()) {
    LazyExponentials<S> e_w, e_h;
    const T r_w = start_lazily(e_w, a.w + i * z.stride_w, c.bins),
            r_h = start_lazily(e_h, a.h + i * z.stride_h, c.bins);
    const RqBin<T> bin = rq_locate<0, kInverse>(inner(to_real(a.x[i]), c), e_w, e_h, r_w, r_h, c);
    const S* d = a.d + i * z.stride_d;
    if constexpr (kBackward) {
      const RqAdjoint<T> g = finish_backward<kInverse>(a, i, d, a.grad_d + i * z.stride_d, slopes, bin, c);
      S* grad_w = a.grad_w + i * z.stride_w;
      S* grad_h = a.grad_h + i * z.stride_h;
      rq_softmax_adjoint<0>(e_w, bin.k, bin.scale_w, r_w, g.x, g.w, bin.e_w, c,
                            [&](int j, T v) { grad_w[j] = from_real<S>(v); });
      rq_softmax_adjoint<0>(e_h, bin.k, bin.scale_h, r_h, g.y, g.h, bin.e_h, c,
                            [&](int j, T v) { grad_h[j] = from_real<S>(v); });
    } else {
      finish_forward<kInverse>(a, i, d, slopes, bin, c);
    }
  }
}

template <class S, bool kBackward>
void run(const Arrays<S>& a, const RqSplineSizes& z, const RqSplineOptions& o, Stream stream) {
  using T = compute_t<S>;
  const auto c = rq_constants<T>(z.bins, z.slopes, o.bound, o.min_width, o.min_height, o.min_slope);
  const char* name = kBackward ? "rq_spline_backward" : "rq_spline_forward";
  const unsigned blocks = blocks_for(z.n, kThreads);
  const auto start = [&](auto inverse, auto bins) {
    constexpr bool kInverse = decltype(inverse)::value;
    constexpr int kBins = decltype(bins)::value;
    if constexpr (kBins == 0)
      launch(name, rq_spline_rows<S, kInverse, kBackward>, blocks, kThreads, 0, stream, a, z, c);
    else
      launch(name, rq_spline_tiled<kBins, kInverse, kBackward>, blocks, kThreads, 0, stream, a, z, c);
  };
  const auto with_bins = [&](auto inverse) {
    if constexpr (std::is_same<S, float>::value) {
      switch (z.bins) {
        case 4:
          return start(inverse, std::integral_constant<int, 4>{});
        case 8:
          return start(inverse, std::integral_constant<int, 8>{});
        case 10:
          return start(inverse, std::integral_constant<int, 10>{});
        case 16:
          return start(inverse, std::integral_constant<int, 16>{});
        case 32:
          return start(inverse, std::integral_constant<int, 32>{});
      }
    }
    start(inverse, std::integral_constant<int, 0>{});
  };
  if (o.inverse)
    with_bins(std::true_type{});
  else
    with_bins(std::false_type{});
}

}  // namespace

void rq_spline_forward(const RqSplineForward& f) {
  dispatch_float(f.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    run<S, false>(arrays<S>(f), f.size, f.options, f.stream);
  });
}

void rq_spline_backward(const RqSplineBackward& f) {
  dispatch_float(f.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    run<S, true>(arrays<S>(f), f.size, f.options, f.stream);
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
