// Rational-quadratic spline on CUDA: one thread a number. For the common numbers of bins a block stages the logits of
// its numbers through shared memory, so that global memory is read and written in whole lines and each thread keeps its
// exponentials in registers. For any other number, and other types than float32, threads read their rows in place. Rows
// that several numbers share are read through the caches; their gradients are sums that a block takes in shared memory.
#include <type_traits>

#include "common/launch.cuh"
#include "ops/rq_spline/rq_spline_arrays.h"
#include "ops/rq_spline/rq_spline_math.h"
#include "ops/rq_spline/rq_spline_shared.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int kThreads = kRqThreads;

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

// The slopes at both ends of a bin, and where they lie.
template <class T>
struct Ends {
  RqSlope<T> low, high;
  int low_at, high_at;
};

template <class S, class T>
__device__ Ends<T> load_slopes(const S* d, int slopes, int k, const RqConstants<T>& c) {
  T low = 0, high = 0;
  const int at = k + c.first_slope, low_at = at > 0 ? at : 0, high_at = at + 1 < slopes ? at + 1 : c.last_slope;
  if (slopes > 0) {
    low = to_real(d[low_at]);
    high = to_real(d[high_at]);
  }
  return {rq_slope(low, k == c.fixed_first, c), rq_slope(high, k == c.fixed_last, c), low_at, high_at};
}

template <bool kInverse, class S, class T>
__device__ void finish_forward(const Arrays<S>& a, int64_t i, const S* d, int slopes, const RqBin<T>& bin,
                               const RqConstants<T>& c) {
  const Ends<T> s = load_slopes(d, slopes, bin.k, c);
  const RqPoint<T> p = rq_evaluate<kInverse>(bin, s.low.d, s.high.d, c);
  const T v = to_real(a.x[i]);
  const bool inside = rq_inside<kInverse>(v, c);
  a.y[i] = from_real<S>(inside ? p.y : v + c.outside);
  a.log_det[i] = inside ? p.log_det : v == v ? c.outside : v;
}

// Writes the gradient of x and gives the other cotangents; numbers outside have none.
template <bool kInverse, class S, class T>
__device__ RqAdjoint<T> adjoint_of(const Arrays<S>& a, int64_t i, const Ends<T>& s, const RqBin<T>& bin,
                                   const RqConstants<T>& c) {
  const RqPoint<T> p = rq_evaluate<kInverse>(bin, s.low.d, s.high.d, c);
  const T v = to_real(a.x[i]), grad_y = to_real(a.grad_y[i]);
  const bool inside = rq_inside<kInverse>(v, c);
  const RqAdjoint<T> g = rq_adjoint<kInverse>(p, inside ? grad_y : T(0), inside ? a.grad_log_det[i] : T(0));
  a.grad_x[i] = from_real<S>(inside ? g.v : c.closed ? T(0) : grad_y);
  return inside ? g : RqAdjoint<T>{};
}

template <bool kInverse, class S, class T>
__device__ RqAdjoint<T> finish_backward(const Arrays<S>& a, int64_t i, const S* d, S* grad_d, int slopes,
                                        const RqBin<T>& bin, const RqConstants<T>& c) {
  const Ends<T> s = load_slopes(d, slopes, bin.k, c);
  const RqAdjoint<T> g = adjoint_of<kInverse>(a, i, s, bin, c);
  const T low = g.d0 * s.low.derivative, high = g.d1 * s.high.derivative;
  for (int j = 0; j < slopes; ++j)
    grad_d[j] = from_real<S>((j == s.low_at ? low : T(0)) + (j == s.high_at ? high : T(0)));
  return g;
}

// By which the gradient of a clipped logit is multiplied to that of the logit.
__device__ inline float clip_derivative(float logit, float clip) {
  if (clip == 0) return 1;
  const float s = rq_soft_clip(&logit, clip);
  return s * s;
}

template <int kBins, bool kInverse, bool kBackward>
__global__ __launch_bounds__(kThreads) void rq_spline_tiled(Arrays<float> a, RqSplineSizes z, RqConstants<float> c) {
  GF_SHARED(float, tile_w, [kThreads * kPitch<kBins>]);
  GF_SHARED(float, tile_h, [kThreads * kPitch<kBins>]);
  const int t = threadIdx.x, slopes = static_cast<int>(z.slopes);
  const bool shared = !kBackward && z.repeats != 1;
  for (int64_t first = int64_t(blockIdx.x) * kThreads; first < z.count; first += int64_t(gridDim.x) * kThreads) {
    const int count = static_cast<int>(z.count - first < kThreads ? z.count - first : kThreads);
    if (!shared) {
      stage<kBins>(tile_w, a.w + first * z.stride_w, z.stride_w, count);
      stage<kBins>(tile_h, a.h + first * z.stride_h, z.stride_h, count);
    }
    __syncthreads();
    if (t < count) {
      const int64_t i = first + t, row = shared ? shared_row_of(z, i) : i;
      float* row_w = tile_w + t * kPitch<kBins>;
      float* row_h = tile_h + t * kPitch<kBins>;
      const float* logits_w = shared ? a.w + row * z.stride_w : row_w;
      const float* logits_h = shared ? a.h + row * z.stride_h : row_h;
      float e_w[kBins], e_h[kBins];
      GF_UNROLL
      for (int j = 0; j < kBins; ++j) {
        e_w[j] = logits_w[j];
        e_h[j] = logits_h[j];
        if (c.zuko) rq_soft_clip(e_w + j, c.clip_logits), rq_soft_clip(e_h + j, c.clip_logits);
      }
      const float r_w = rq_exponentials<kBins>(e_w, kBins), r_h = rq_exponentials<kBins>(e_h, kBins);
      const RqBin<float> bin = rq_locate<kBins, kInverse>(rq_inner<kInverse>(a.x[i], c), e_w, e_h, r_w, r_h, c);
      const float* d = a.d + row * z.stride_d;
      if constexpr (kBackward) {
        const RqAdjoint<float> g = finish_backward<kInverse>(a, i, d, a.grad_d + i * z.stride_d, slopes, bin, c);
        rq_softmax_adjoint<kBins>(e_w, bin.k, bin.scale_w, r_w, g.x, g.w, bin.e_w, c.unit_w, kBins,
                                  [&](int j, float v) { row_w[j] = v * clip_derivative(row_w[j], c.clip_logits); });
        rq_softmax_adjoint<kBins>(e_h, bin.k, bin.scale_h, r_h, g.y, g.h, bin.e_h, c.unit_h, kBins,
                                  [&](int j, float v) { row_h[j] = v * clip_derivative(row_h[j], c.clip_logits); });
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
  for (int64_t i = grid_thread(); i < z.count; i += grid_threads()) {
    const int64_t row = kBackward ? i : shared_row_of(z, i);
    T r_w, r_h;
    const LazyExponentials<S> e_w = rq_lazy_exponentials(a.w + row * z.stride_w, c.bins, c.clip_logits, &r_w);
    const LazyExponentials<S> e_h = rq_lazy_exponentials(a.h + row * z.stride_h, c.bins, c.clip_logits, &r_h);
    const RqBin<T> bin = rq_locate<0, kInverse>(rq_inner<kInverse>(to_real(a.x[i]), c), e_w, e_h, r_w, r_h, c);
    const S* d = a.d + row * z.stride_d;
    if constexpr (kBackward) {
      const RqAdjoint<T> g = finish_backward<kInverse>(a, i, d, a.grad_d + i * z.stride_d, slopes, bin, c);
      S* grad_w = a.grad_w + i * z.stride_w;
      S* grad_h = a.grad_h + i * z.stride_h;
      rq_softmax_adjoint<0>(e_w, bin.k, bin.scale_w, r_w, g.x, g.w, bin.e_w, c.unit_w, c.bins,
                            [&](int j, T v) { grad_w[j] = from_real<S>(v * e_w.clip_derivative(j)); });
      rq_softmax_adjoint<0>(e_h, bin.k, bin.scale_h, r_h, g.y, g.h, bin.e_h, c.unit_h, c.bins,
                            [&](int j, T v) { grad_h[j] = from_real<S>(v * e_h.clip_derivative(j)); });
    } else {
      finish_forward<kInverse>(a, i, d, slopes, bin, c);
    }
  }
}

// Tasks of a block: the gradients of widths, heights and slopes of `count` rows, whose sums lie one after the other.
template <class S, class T>
__device__ void row_gradients(const Arrays<S>& a, const RqSplineSizes& z, const RqConstants<T>& c, int64_t row,
                              int count, const double* sums) {
  for (int task = threadIdx.x; task < 3 * count; task += kThreads) {
    const int64_t r = row + task / 3;
    const double* s = sums + task / 3 * c.bins * kRqSums;
    if (task % 3 == 0)
      rq_logit_gradients(a.w + r * z.stride_w, s, c.free_w * c.x.unit, c, a.grad_w + r * z.stride_w);
    else if (task % 3 == 1)
      rq_logit_gradients(a.h + r * z.stride_h, s + 2, c.free_h * c.y.unit, c, a.grad_h + r * z.stride_h);
    else
      rq_slope_gradients(a.d + r * z.stride_d, s, static_cast<int>(z.slopes), c, a.grad_d + r * z.stride_d);
  }
}

// Shared rows. A block takes one chunk of one row, or at once as many rows as its threads have numbers of; a thread
// then adds up the cotangents of a bin, in the order of the numbers. `sums`: at_once rows for each block.
template <class S, bool kInverse>
__global__ __launch_bounds__(kThreads, 4) void rq_spline_shared(Arrays<S> a, RqSplineSizes z,
                                                                RqConstants<compute_t<S>> c, SharedChunks chunks,
                                                                int at_once, double* sums) {
  using T = compute_t<S>;
  GF_SHARED(T, cotangent, [kRqCotangents][kThreads]);
  GF_SHARED(int, bin_of, [kThreads]);
  const int t = threadIdx.x, slopes = static_cast<int>(z.slopes);
  const int span = at_once > 1 ? static_cast<int>(z.repeats) : kThreads;  // numbers of a row at a time
  sums += int64_t(blockIdx.x) * at_once * c.bins * kRqSums;
  const int64_t units = (z.all_rows + at_once - 1) / at_once * chunks.count;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t row = chunks.count > 1 ? unit % z.all_rows : unit * at_once;
    const int64_t begin = chunks.count > 1 ? unit / z.all_rows * chunks.numbers : 0;
    const int64_t end = begin + chunks.numbers < z.repeats ? begin + chunks.numbers : z.repeats;
    const int count = static_cast<int>(z.all_rows - row < at_once ? z.all_rows - row : at_once);
    const int pairs = count * c.bins * kRqCotangents;
    for (int q = t; q < pairs; q += kThreads) sums[q / kRqCotangents * kRqSums + q % kRqCotangents] = 0;
    for (int64_t first = begin; first < end; first += span) {
      const int64_t r = row + t / span, v = first + t % span;
      bin_of[t] = -1;
      if (t / span < count && v < end) {
        const int64_t i = shared_number_at(z, r, v);
        T r_w, r_h;
        const LazyExponentials<S> e_w = rq_lazy_exponentials(a.w + r * z.stride_w, c.bins, c.clip_logits, &r_w);
        const LazyExponentials<S> e_h = rq_lazy_exponentials(a.h + r * z.stride_h, c.bins, c.clip_logits, &r_h);
        const RqBin<T> bin = rq_locate<0, kInverse>(rq_inner<kInverse>(to_real(a.x[i]), c), e_w, e_h, r_w, r_h, c);
        const RqAdjoint<T> g = adjoint_of<kInverse>(a, i, load_slopes(a.d + r * z.stride_d, slopes, bin.k, c), bin, c);
        bin_of[t] = bin.k;
        cotangent[0][t] = g.x, cotangent[1][t] = g.w, cotangent[2][t] = g.y;
        cotangent[3][t] = g.h, cotangent[4][t] = g.d0, cotangent[5][t] = g.d1;
      }
      __syncthreads();
      for (int q = t; q < pairs; q += kThreads) {
        const int which = q % kRqCotangents, bin = q / kRqCotangents % c.bins;
        const int from = q / kRqCotangents / c.bins * span;
        T sum = 0;
        for (int i = from; i < from + span; ++i)
          if (bin_of[i] == bin) sum += cotangent[which][i];
        sums[q / kRqCotangents * kRqSums + which] += sum;
      }
      __syncthreads();
    }
    if (chunks.count == 1) {
      __syncthreads();
      row_gradients(a, z, c, row, count, sums);
      __syncthreads();
    }
  }
}

// Adds the chunks of a row, one block a row.
template <class S>
__global__ __launch_bounds__(kThreads) void rq_spline_chunks(Arrays<S> a, RqSplineSizes z, RqConstants<compute_t<S>> c,
                                                             int64_t chunks, double* sums) {
  const int64_t row = blockIdx.x;
  const int size = c.bins * kRqSums;
  double* first = sums + row * size;
  for (int q = threadIdx.x; q < size; q += kThreads) {
    if (q % kRqSums >= kRqCotangents) continue;
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += first[chunk * z.all_rows * size + q];
    first[q] = sum;
  }
  __syncthreads();
  row_gradients(a, z, c, row, 1, first);
}

template <class S>
void run_shared(const Arrays<S>& a, const RqSplineSizes& z, const RqConstants<compute_t<S>>& c, bool inverse,
                double* sums, Stream stream) {
  const SharedChunks chunks = shared_chunks(z);
  launch("rq_spline_backward", inverse ? rq_spline_shared<S, true> : rq_spline_shared<S, false>,
         static_cast<unsigned>(rq_blocks(z, chunks)), kThreads, 0, stream, a, z, c, chunks,
         static_cast<int>(rq_rows_at_once(z)), sums);
  if (chunks.count > 1)
    launch("rq_spline_backward", rq_spline_chunks<S>, static_cast<unsigned>(z.all_rows), kThreads, 0, stream, a, z, c,
           chunks.count, sums);
}

template <class S, bool kBackward>
void run(const Arrays<S>& a, const RqSplineSizes& z, const RqSplineOptions& o, double* workspace, Stream stream) {
  using T = compute_t<S>;
  const auto c = rq_constants<T>(z.bins, z.slopes, o);
  if (kBackward && z.repeats != 1) return run_shared(a, z, c, o.inverse, workspace, stream);
  const char* name = kBackward ? "rq_spline_backward" : "rq_spline_forward";
  const unsigned blocks = blocks_for(z.count, kThreads);
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
    run<S, false>(arrays<S>(f), f.size, f.options, nullptr, f.stream);
  });
}

void rq_spline_backward(const RqSplineBackward& f) {
  dispatch_float(f.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    run<S, true>(arrays<S>(f), f.size, f.options, f.workspace, f.stream);
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
