// The CDF of mixtures on CUDA: one thread a number. A block stages the parameters of its numbers through shared memory,
// so that global memory is read and written in whole lines; rows that are too long for that, and rows that several
// numbers share, are read in place through the caches. The gradients of a shared row are sums that a warp takes over
// its part of the row's numbers.
#include <type_traits>

#include "common/launch.cuh"
#include "ops/mixture_cdf/mixture_cdf_math.h"
#include "ops/mixture_cdf/mixture_cdf_rows.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int kThreads = 128;
constexpr std::size_t kMostShared = 96 * 1024;

// Components of a row of raw parameters, computed whenever they are asked for.
template <class S>
struct RowComponents {
  using T = compute_t<S>;
  const S *logits, *means, *log_scales;
  int count;
  T top, total;

  __device__ RowComponents(const S* l, const S* m, const S* s, int n)
      : logits(l), means(m), log_scales(s), count(n), top(to_real(l[0])), total(0) {
    for (int k = 1; k < n; ++k) top = max(top, to_real(l[k]));
    for (int k = 0; k < n; ++k) total += exp_short(to_real(l[k]) - top);
  }
  __device__ MixtureComponent<T> operator[](int k) const {
    return mixture_component(to_real(logits[k]), top, to_real(means[k]), to_real(log_scales[k]));
  }
};

// What is known of a number before its components are differentiated.
template <class T>
struct Number {
  T x;
  MixtureSums<T> sums;
  MixtureAdjoint<T> adjoint;
};

template <bool kNormal, class S, class C, class T>
__device__ void map_number(const MixtureArrays<S>& a, const C& c, const MixtureOptions& o, int64_t i, T x) {
  if (o.inverse) x = mixture_solve<kNormal>(c, mixture_target<kNormal>(x, o.output));
  MixtureSums<T> s;
  mixture_sums<kNormal, false>(c, x, &s);
  const MixturePoint<T> p = mixture_point(s, o.output);
  a.out[i] = from_real<S>(o.inverse ? x : p.y);
  a.log_det[i] = o.inverse ? -p.log_det : p.log_det;
}

// Writes the gradient of the argument. The y of half types is rounded, and not where the derivatives are wanted: there
// the inverse is solved again.
template <bool kNormal, class S, class C, class T = compute_t<S>>
__device__ void pull_number(const MixtureArrays<S>& a, const C& c, const MixtureOptions& o, int64_t i, Number<T>* n) {
  n->x = to_real(a.x[i]);
  bool inside = true;
  if (o.inverse) {
    const MixtureTarget<T> target = mixture_target<kNormal>(n->x, o.output);
    inside = target.inside;
    if constexpr (std::is_same<S, T>::value)
      n->x = a.y[i];
    else
      n->x = mixture_solve<kNormal>(c, target);
  }
  mixture_sums<kNormal, true>(c, n->x, &n->sums);
  n->adjoint = mixture_adjoint(n->sums, o, to_real(a.grad_y[i]), a.grad_log_det[i]);
  const T g = n->adjoint.argument;
  a.grad_x[i] = from_real<S>(inside || g != g ? g : T(0));
}

template <bool kNormal, class C, class T>
__device__ MixtureGradient<T> gradient_of(const C& c, int k, const Number<T>& n) {
  MixtureGradient<T> g = mixture_gradient(mixture_term<kNormal>(c[k], n.x, n.sums), n.adjoint);
  if (abs(T(to_real(c.log_scales[k]))) > T(kMostLogScale)) g.log_scale = 0;
  return g;
}

// Rows of a tile lie an odd number of words apart, so that threads reading a column meet no bank twice.
template <class S>
int pitch_of(const MixtureSizes& z) {
  return static_cast<int>(3 * z.components) | 1;
}

// Numbers with rows of their own, staged in the compute type.
template <class S, bool kNormal, bool kBackward>
__global__ __launch_bounds__(kThreads, 4) void mixture_tiled(MixtureArrays<S> a, MixtureSizes z, MixtureOptions o,
                                                             int pitch) {
  using T = compute_t<S>;
  T* tile = dynamic_shared<T>();
  const int t = threadIdx.x, n = static_cast<int>(z.components);
  const S* const from[3] = {a.logits, a.means, a.log_scales};
  S* const to[3] = {a.grad_logits, a.grad_means, a.grad_log_scales};
  for (int64_t first = int64_t(blockIdx.x) * kThreads; first < z.count; first += int64_t(gridDim.x) * kThreads) {
    const int count = static_cast<int>(z.count - first < kThreads ? z.count - first : kThreads);
    GF_UNROLL
    for (int q = 0; q < 3; ++q)
      for (int i = t; i < count * n; i += kThreads)
        tile[i / n * pitch + q * n + i % n] = to_real(from[q][(first + i / n) * z.stride + i % n]);
    __syncthreads();
    if (t < count) {
      T* row = tile + t * pitch;
      const RowComponents<T> c(row, row + n, row + 2 * n, n);
      const int64_t i = first + t;
      if constexpr (kBackward) {
        Number<T> number;
        pull_number<kNormal>(a, c, o, i, &number);
        for (int k = 0; k < n; ++k) {
          const MixtureGradient<T> g = gradient_of<kNormal>(c, k, number);
          row[k] = g.logit, row[n + k] = g.mean, row[2 * n + k] = g.log_scale;
        }
      } else {
        map_number<kNormal>(a, c, o, i, T(to_real(a.x[i])));
      }
    }
    __syncthreads();
    if constexpr (kBackward) {
      GF_UNROLL
      for (int q = 0; q < 3; ++q)
        for (int i = t; i < count * n; i += kThreads)
          to[q][(first + i / n) * z.stride + i % n] = from_real<S>(tile[i / n * pitch + q * n + i % n]);
      __syncthreads();
    }
  }
}

// Rows read in place; in the backward each number has its own.
template <class S, bool kNormal, bool kBackward>
__global__ __launch_bounds__(kThreads, 4) void mixture_rows(MixtureArrays<S> a, MixtureSizes z, MixtureOptions o) {
  using T = compute_t<S>;
  const int n = static_cast<int>(z.components);
  for (int64_t i = grid_thread(); i < z.count; i += grid_threads()) {
    const int64_t at = (kBackward ? i : shared_row_of(z, i)) * z.stride;
    const RowComponents<S> c(a.logits + at, a.means + at, a.log_scales + at, n);
    if constexpr (kBackward) {
      Number<T> number;
      pull_number<kNormal>(a, c, o, i, &number);
      for (int k = 0; k < n; ++k) {
        const MixtureGradient<T> g = gradient_of<kNormal>(c, k, number);
        a.grad_logits[at + k] = from_real<S>(g.logit);
        a.grad_means[at + k] = from_real<S>(g.mean);
        a.grad_log_scales[at + k] = from_real<S>(g.log_scale);
      }
    } else {
      map_number<kNormal>(a, c, o, i, T(to_real(a.x[i])));
    }
  }
}

template <class T>
__device__ double warp_total(T value) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// The gradients of shared rows: unit u, a warp's, is part u / all_rows of row u % all_rows.
template <class S, bool kNormal>
__global__ __launch_bounds__(kThreads, 4) void mixture_shared(MixtureArrays<S> a, MixtureSizes z, MixtureOptions o,
                                                              SharedChunks parts, double* workspace) {
  using T = compute_t<S>;
  const int n = static_cast<int>(z.components), lane = lane_index();
  const int64_t warps = int64_t(gridDim.x) * (kThreads / kWarpSize), units = parts.count * z.all_rows;
  for (int64_t unit = int64_t(blockIdx.x) * (kThreads / kWarpSize) + warp_index(); unit < units; unit += warps) {
    const int64_t row = unit % z.all_rows, at = row * z.stride, begin = unit / z.all_rows * parts.numbers;
    const int64_t end = begin + parts.numbers < z.repeats ? begin + parts.numbers : z.repeats;
    double* sums = workspace + unit * 3 * n;
    for (int k = lane; k < 3 * n; k += kWarpSize) sums[k] = 0;
    __syncwarp();
    const RowComponents<S> c(a.logits + at, a.means + at, a.log_scales + at, n);
    for (int64_t first = begin; first < end; first += kWarpSize) {
      const bool exists = first + lane < end;
      Number<T> number;
      if (exists) pull_number<kNormal>(a, c, o, shared_number_at(z, row, first + lane), &number);
      for (int k = 0; k < n; ++k) {
        MixtureGradient<T> g{T(0), T(0), T(0)};
        if (exists) g = gradient_of<kNormal>(c, k, number);
        const double logit = warp_total(g.logit), mean = warp_total(g.mean), log_scale = warp_total(g.log_scale);
        if (lane == 0) sums[k] += logit, sums[n + k] += mean, sums[2 * n + k] += log_scale;
      }
    }
  }
}

// Adds the parts of each row.
template <class S>
__global__ __launch_bounds__(kThreads) void mixture_parts_sum(MixtureArrays<S> a, MixtureSizes z, int64_t parts,
                                                              const double* workspace) {
  using T = compute_t<S>;
  const int64_t n = z.components, all = z.all_rows * 3 * n;
  for (int64_t i = grid_thread(); i < all; i += grid_threads()) {
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += workspace[part * all + i];
    const int64_t row = i / (3 * n), q = i / n % 3;
    S* to = q == 0 ? a.grad_logits : q == 1 ? a.grad_means : a.grad_log_scales;
    to[row * z.stride + i % n] = from_real<S>(static_cast<T>(sum));
  }
}

template <class S, bool kNormal, bool kBackward>
void run(const MixtureArrays<S>& a, const MixtureSizes& z, const MixtureOptions& o, double* workspace, Stream stream) {
  const char* name = kBackward ? "mixture_cdf_backward" : "mixture_cdf_forward";
  if (kBackward && z.repeats != 1) {
    const SharedChunks parts = mixture_parts(z);
    launch(name, mixture_shared<S, kNormal>, blocks_for(parts.count * z.all_rows, kThreads / kWarpSize), kThreads, 0,
           stream, a, z, o, parts, workspace);
    launch(name, mixture_parts_sum<S>, blocks_for(z.all_rows * 3 * z.components, kThreads), kThreads, 0, stream, a, z,
           parts.count, workspace);
    return;
  }
  const int pitch = pitch_of<S>(z);
  const std::size_t bytes = sizeof(compute_t<S>) * static_cast<std::size_t>(pitch) * kThreads;
  const unsigned blocks = blocks_for(z.count, kThreads);
  if (z.repeats == 1 && bytes <= kMostShared)
    launch(name, mixture_tiled<S, kNormal, kBackward>, blocks, kThreads, bytes, stream, a, z, o, pitch);
  else
    launch(name, mixture_rows<S, kNormal, kBackward>, blocks, kThreads, 0, stream, a, z, o);
}

template <bool kBackward, class F>
void dispatch(const F& f, double* workspace) {
  dispatch_float(f.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    const MixtureArrays<S> a = mixture_arrays<S>(f);
    if (f.options.normal)
      run<S, true, kBackward>(a, f.size, f.options, workspace, f.stream);
    else
      run<S, false, kBackward>(a, f.size, f.options, workspace, f.stream);
  });
}

}  // namespace

void mixture_cdf_forward(const MixtureForward& f) { dispatch<false>(f, nullptr); }
void mixture_cdf_backward(const MixtureBackward& f) { dispatch<true>(f, f.workspace); }

}  // namespace GF_BACKEND
}  // namespace gf
