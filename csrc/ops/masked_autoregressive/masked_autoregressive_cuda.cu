// The inverse of a masked autoregressive transform on CUDA. A block takes 32 samples at a time, a lane each, with their
// units in shared memory. The terms of a sum are dealt out to the warps: a step of the recursion is a few units wide,
// so it is latency that counts, and the parts meet in shared memory. All samples are on their way at once.
#include "common/launch.cuh"
#include "common/rows.cuh"
#include "ops/masked_autoregressive/masked_autoregressive_math.h"
#include "ops/masked_autoregressive/masked_autoregressive_plan.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarpSize;
constexpr int kPackBlocks = 128;
constexpr int kTile = 4;  // units whose sums are taken together
static_assert(kMaskedSamples == kWarpSize, "a lane a sample");

// --- packing: blocks take stages in turn

template <class T, class Args>
__device__ T* pack_group(const Args& a, const MaskedPlan& plan, const MaskedGroup& g, bool backward, T* to) {
  const MaskedLayer f = plan.layer(g.layer);
  const int count = g.to - g.from;
  for (int first = g.first; first < g.last; first += kTile) {
    const int units = g.last - first < kTile ? g.last - first : kTile;
    for (int i = threadIdx.x; i < (count + 1) * units; i += kThreads) {
      const int u = i % units, k = i / units - 1;
      if (k < 0)
        to[i] = backward ? T(0) : load_number<T>(a.biases, a.dtype, f.biases + plan.own(f, first + u));
      else
        to[i] = load_number<T>(a.weights, a.dtype, masked_weight_at(plan, g, backward, first + u, k));
    }
    to += (count + 1) * units;
  }
  return to;
}

template <class T, class Args>
__global__ void __launch_bounds__(kThreads, 1) pack_kernel(Args a, bool backward) {
  const MaskedPlan plan{a.plan};
  T* packed = static_cast<T*>(a.workspace);
  for (int s = static_cast<int>(blockIdx.x); s < plan.stages(); s += static_cast<int>(gridDim.x)) {
    T* to = packed + plan.packed(s);
    for (int i = 0; i <= plan.layers(); ++i) to = pack_group(a, plan, masked_group(plan, s, i), false, to);
    if (!backward) continue;
    to = packed + plan.packed_backward(s);
    for (int i = 0; i <= plan.layers(); ++i) to = pack_group(a, plan, masked_group_backward(plan, s, i), true, to);
  }
}

// --- 32 samples through all stages

template <class T>
struct Samples {
  T* rows;     // [row][lane]
  T* partial;  // [warp][unit][lane]
  int64_t sample;
  bool exists;
  int lane, warp;

  __device__ T* at(int row) const { return rows + row * kWarpSize + lane; }
};

// done(unit, its sum) for all units of a group, each by one warp. All threads of the block take part.
template <class T, class F>
__device__ __forceinline__ const T* sums(const Samples<T>& b, const T* w, int units, int count, int from_row,
                                         F&& done) {
  for (int first = 0; first < units; first += kTile) {
    const int m = units - first < kTile ? units - first : kTile;
    T sum[kTile];
    GF_UNROLL
    for (int u = 0; u < kTile; ++u) sum[u] = T(0);
    for (int k = b.warp; k < count; k += kWarps) {
      const T x = *b.at(from_row + k);
      const T* row = w + (k + 1) * m;
      GF_UNROLL
      for (int u = 0; u < kTile; ++u)
        if (u < m) sum[u] = fma(row[u], x, sum[u]);
    }
    GF_UNROLL
    for (int u = 0; u < kTile; ++u)
      if (u < m) b.partial[(b.warp * kTile + u) * kWarpSize + b.lane] = sum[u];
    __syncthreads();
    if (b.warp < m) {
      T total = w[b.warp];
      for (int v = 0; v < kWarps; ++v) total += b.partial[(v * kTile + b.warp) * kWarpSize + b.lane];
      done(first + b.warp, total);
    }
    __syncthreads();
    w += (count + 1) * m;
  }
  return w;
}

template <class T>
__device__ T activate(Activation kind, T x) {
  return dispatch_activation(kind, [&](auto a) { return activation<decltype(a)::value>(x); });
}
template <class T>
__device__ T slope_of(Activation kind, T x, T value) {
  return dispatch_activation(kind, [&](auto a) { return activation_slope<decltype(a)::value>(x, value); });
}

template <class T>
__device__ Mapped<T> solve(const MaskedConstants<T>& c, T z, const MaskedParams<T>& p) {
  if (c.is_spline) return c.inverse ? masked_spline<true>(c, z, p) : masked_spline<false>(c, z, p);
  return dispatch_scale_map(c.scale_map, [&](auto m) { return masked_affine<decltype(m)::value>(c, z, p); });
}

template <class T>
__device__ T adjoint_of(const MaskedConstants<T>& c, T z, T x, T g, T l, const MaskedParams<T>& p) {
  if (c.is_spline)
    return c.inverse ? masked_spline_adjoint<true>(c, z, g, l, p) : masked_spline_adjoint<false>(c, z, g, l, p);
  return dispatch_scale_map(c.scale_map,
                            [&](auto m) { return masked_affine_adjoint<decltype(m)::value>(c, z, x, g, l, p); });
}

// Computes all hidden units; solves for the numbers or, with kKnown, takes them from `given` and leaves all parameters.
// Returns this thread's share of log|det|.
template <bool kKnown, class T, class Args>
__device__ T sweep(const Args& a, const MaskedConstants<T>& c, const void* given, void* found, const Samples<T>& b) {
  const MaskedPlan plan{a.plan};
  const int layers = plan.layers();
  const MaskedLayer inputs = plan.layer(0), params = plan.layer(layers + 1);
  const auto kind = static_cast<Activation>(a.activation);
  const T* packed = static_cast<const T*>(a.workspace);
  T log_det = T(0);
  for (int s = 0; s < plan.stages(); ++s) {
    const T* w = packed + plan.packed(s);
    MaskedGroup g = masked_group(plan, s, 0);
    const int first = params.value + (kKnown ? g.first : 0);
    w = sums(b, w, g.last - g.first, g.to, plan.layer(g.other).value,
             [&](int u, T total) { *b.at(first + u) = total; });
    const int begin = plan.start(inputs, s), end = plan.start(inputs, s + 1);
    for (int i = begin + b.warp; i < end; i += kWarps) {
      const int64_t at = b.sample * a.d + plan.own(inputs, i);
      T x = b.exists ? load_number<T>(given, a.dtype, at) : T(0);
      if (!kKnown) {
        const Mapped<T> m = solve(c, x, MaskedParams<T>{b.at(first + (i - begin) * c.n_params), kWarpSize});
        x = m.x;
        log_det += m.log_det;
        if (b.exists) store_number<T>(found, a.dtype, at, x);
      }
      *b.at(inputs.value + i) = x;
    }
    __syncthreads();
    for (int l = 1; l <= layers; ++l) {
      g = masked_group(plan, s, l);
      if (g.first == g.last) continue;
      const MaskedLayer f = plan.layer(l);
      const int skip = f.skip >= 0 ? plan.layer(l - 2).before : 0;
      w = sums(b, w, g.last - g.first, g.to, plan.layer(g.other).value, [&](int u, T total) {
        const int unit = g.first + u;
        if (f.context >= 0 && b.exists)
          total += load_number<T>(a.context, a.dtype, b.sample * a.n_context + f.context + plan.own(f, unit));
        if (f.skip >= 0) total += *b.at(skip + plan.p[f.skip + unit]);
        *b.at(f.before + unit) = total;
        if (f.active) *b.at(f.value + unit) = activate(kind, total);
      });
    }
  }
  return log_det;
}

// Of a pass the cotangents of the parameters are there already, and what they leave of those of the numbers.
template <class T>
__device__ void sweep_back(const MaskedAutoregressiveBackward& a, const MaskedConstants<T>& c, const Samples<T>& b) {
  const MaskedPlan plan{a.plan};
  const int layers = plan.layers();
  const MaskedLayer inputs = plan.layer(0), params = plan.layer(layers + 1);
  const auto kind = static_cast<Activation>(a.activation);
  const T l = b.exists ? static_cast<const T*>(a.grad_log_det)[b.sample] : T(0);
  const T* packed = static_cast<const T*>(a.workspace);
  for (int s = plan.stages() - 1; s >= 0; --s) {
    const T* w = packed + plan.packed_backward(s);
    for (int i = 0; i <= layers; ++i) {
      const MaskedGroup g = masked_group_backward(plan, s, i);
      if (g.first == g.last) continue;
      const MaskedLayer f = plan.layer(g.layer);
      const int later = f.skipped >= 0 ? plan.layer(g.layer + 2).adjoint : 0;
      w = sums(b, w, g.last - g.first, g.to - g.from, plan.layer(g.other).adjoint + g.from, [&](int u, T total) {
        const int unit = g.first + u;
        if (g.layer > 0) {
          if (f.active) total *= slope_of(kind, *b.at(f.before + unit), *b.at(f.value + unit));
          const int at = f.skipped >= 0 ? plan.p[f.skipped + unit] : -1;
          if (at >= 0) total += *b.at(later + at);
        } else if (a.pass) {
          total += *b.at(f.adjoint + unit);
        }
        *b.at(f.adjoint + unit) = total;
      });
    }
    if (a.pass) continue;
    for (int i = plan.start(inputs, s) + b.warp; i < plan.start(inputs, s + 1); i += kWarps) {
      const int64_t at = b.sample * a.d + plan.own(inputs, i);
      const T z = b.exists ? load_number<T>(a.z, a.dtype, at) : T(0);
      T g = *b.at(inputs.adjoint + i);
      if (b.exists) g += load_number<T>(a.grad_x, a.dtype, at);
      g = adjoint_of(c, z, *b.at(inputs.value + i), g, l,
                     MaskedParams<T>{b.at(params.value + i * c.n_params), kWarpSize});
      if (b.exists) store_number<T>(a.grad_z, a.dtype, at, g);
    }
    __syncthreads();
  }
}

// f(samples) for each 32 samples of this block, with a buffer for them.
template <class T, class Args, class F>
__device__ __forceinline__ void for_samples(const Args& a, bool shared, F&& f) {
  GF_SHARED(T, partial, [kWarps * kTile * kWarpSize]);
  T* spilled = static_cast<T*>(a.workspace) + a.packed + blockIdx.x * a.rows * kWarpSize;
  Samples<T> b;
  b.rows = shared ? dynamic_shared<T>() : spilled;
  b.partial = partial;
  b.lane = lane_index();
  b.warp = warp_index();
  for (int64_t first = int64_t{blockIdx.x} * kWarpSize; first < a.n; first += int64_t{gridDim.x} * kWarpSize) {
    b.sample = first + b.lane;
    b.exists = b.sample < a.n;
    f(b);
    __syncthreads();
  }
}

// Rows of the buffer to rows of a result [.., n].
template <class T>
__device__ void store_units(const Samples<T>& b, int units, int row, int first, int64_t n, void* result) {
  for (int i = b.warp; i < units; i += kWarps)
    if (b.exists) static_cast<T*>(result)[(first + i) * n + b.sample] = *b.at(row + i);
}

// Of a pass: the numbers through their maps. Returns this thread's share of log|det|.
template <class T>
__device__ T map_all(const MaskedAutoregressiveForward& a, const MaskedConstants<T>& c, const Samples<T>& b) {
  const MaskedPlan plan{a.plan};
  const MaskedLayer inputs = plan.layer(0), params = plan.layer(plan.layers() + 1);
  for (int l = 1; a.sums != nullptr && l <= plan.layers() + 1; ++l) {
    const MaskedLayer f = plan.layer(l);
    store_units(b, f.used, f.before, f.sums, a.n, a.sums);
  }
  __syncthreads();
  T log_det = T(0);
  for (int i = b.warp; i < inputs.used; i += kWarps) {
    const Mapped<T> m =
        solve(c, *b.at(inputs.value + i), MaskedParams<T>{b.at(params.value + i * c.n_params), kWarpSize});
    log_det += m.log_det;
    if (b.exists) store_number<T>(a.x, a.dtype, b.sample * a.d + plan.own(inputs, i), m.x);
  }
  return log_det;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(MaskedAutoregressiveForward a, MaskedConstants<T> c, bool shared) {
  for_samples<T>(a, shared, [&](const Samples<T>& b) {
    T share;
    if (a.pass) {
      sweep<true>(a, c, a.z, nullptr, b);
      __syncthreads();
      share = map_all(a, c, b);
    } else {
      share = sweep<false>(a, c, a.z, a.x, b);
    }
    __syncthreads();
    b.partial[b.warp * kWarpSize + b.lane] = share;
    __syncthreads();
    if (b.warp == 0 && b.exists) {
      T log_det = share;
      for (int v = 1; v < kWarps; ++v) log_det += b.partial[v * kWarpSize + b.lane];
      static_cast<T*>(a.log_det)[b.sample] = log_det;
    }
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(MaskedAutoregressiveBackward a, MaskedConstants<T> c, bool shared) {
  for_samples<T>(a, shared, [&](const Samples<T>& b) {
    const MaskedPlan plan{a.plan};
    const MaskedLayer inputs = plan.layer(0), params = plan.layer(plan.layers() + 1);
    sweep<true>(a, c, a.pass ? a.z : a.x, nullptr, b);
    __syncthreads();
    const T l_row = b.exists ? static_cast<const T*>(a.grad_log_det)[b.sample] : T(0);
    for (int i = b.warp; a.pass && i < inputs.used; i += kWarps) {
      const int64_t at = b.sample * a.d + plan.own(inputs, i);
      const T x = b.exists ? load_number<T>(a.x, a.dtype, at) : T(0);
      const T g = b.exists ? load_number<T>(a.grad_x, a.dtype, at) : T(0);
      *b.at(inputs.adjoint + i) = adjoint_of(c, *b.at(inputs.value + i), x, g, l_row,
                                             MaskedParams<T>{b.at(params.value + i * c.n_params), kWarpSize});
    }
    __syncthreads();
    sweep_back(a, c, b);
    for (int i = b.warp; a.pass && i < inputs.used; i += kWarps)
      if (b.exists) store_number<T>(a.grad_z, a.dtype, b.sample * a.d + plan.own(inputs, i), *b.at(inputs.adjoint + i));
    for (int l = 0; l <= plan.layers() + 1; ++l) {
      const MaskedLayer f = plan.layer(l);
      if (l <= plan.layers() && a.wants_products()) store_units(b, f.used, f.value, f.values, a.n, a.values<T>());
      if (l > 0 && a.wants_products()) store_units(b, f.used, f.adjoint, f.sums, a.n, a.adjoint<T>());
      if (f.context < 0 || !b.exists) continue;
      for (int i = b.warp; i < f.used; i += kWarps)
        store_number<T>(a.grad_context, a.dtype, b.sample * a.n_context + f.context + plan.own(f, i),
                        *b.at(f.adjoint + i));
    }
  });
}

// --- the gradients of weights and biases: a block a tile of kMaskedTile x kMaskedTile weights, each a sum over all
// samples in their order

template <class T>
__global__ void __launch_bounds__(kThreads) products_kernel(MaskedAutoregressiveBackward a) {
  constexpr int kSide = static_cast<int>(kMaskedTile), kPer = kSide * kSide / kThreads;
  GF_SHARED(T, left, [kSide][kSide + 1]);
  GF_SHARED(T, right, [kSide][kSide + 1]);
  const MaskedPlan plan{a.plan};
  int64_t tile = blockIdx.x;
  int layer = 1, first = 0, column = 0;
  for (;; ++layer) {
    const int64_t across = (plan.layer(layer - 1).used + kSide) / kSide;  // with a column of ones for the bias
    const int64_t tiles = (plan.layer(layer).used + kSide - 1) / kSide * across;
    if (tile < tiles) {
      first = static_cast<int>(tile / across) * kSide;
      column = static_cast<int>(tile % across) * kSide;
      break;
    }
    tile -= tiles;
  }
  const MaskedLayer f = plan.layer(layer), in = plan.layer(layer - 1);
  const int last = f.used - first < kSide ? f.used - 1 : first + kSide - 1;
  const bool any = plan.p[f.sees + last] > column || column + kSide > in.used;
  const T* adjoint = a.adjoint<T>() + (f.sums + first) * a.n;
  const T* values = a.values<T>() + (in.values + column) * a.n;
  const int lane = lane_index(), warp = warp_index();
  T sum[kPer];
  GF_UNROLL
  for (int i = 0; i < kPer; ++i) sum[i] = T(0);
  for (int64_t k = 0; any && k < a.n; k += kSide) {
    for (int i = warp; i < kSide; i += kWarps) {
      const bool exists = k + lane < a.n;
      left[i][lane] = exists && first + i < f.used ? adjoint[i * a.n + k + lane] : T(0);
      right[i][lane] = !exists ? T(0) : column + i < in.used ? values[i * a.n + k + lane] : T(column + i == in.used);
    }
    __syncthreads();
    for (int j = 0; j < kSide; ++j) {
      const T x = right[lane][j];
      GF_UNROLL
      for (int i = 0; i < kPer; ++i) sum[i] = fma(left[warp + i * kWarps][j], x, sum[i]);
    }
    __syncthreads();
  }
  const int at = column + lane;
  GF_UNROLL
  for (int i = 0; i < kPer; ++i) {
    const int unit = first + warp + i * kWarps;
    if (unit >= f.used) continue;
    const int64_t own = plan.own(f, unit);
    if (at < in.used)
      store_number<T>(a.grad_weights, a.dtype, f.weights + own * in.width + plan.own(in, at),
                      at < plan.p[f.sees + unit] ? sum[i] : T(0));
    else if (at == in.used)
      store_number<T>(a.grad_biases, a.dtype, f.biases + own, sum[i]);
  }
}

template <class T, class Args, class Kernel>
void run(const char* name, Kernel kernel, const Args& a, bool backward) {
  if (a.n == 0) return;
  const int64_t bytes = masked_shared_bytes(a.rows, a.dtype);
  launch(name, pack_kernel<T, Args>, dim3(kPackBlocks), dim3(kThreads), 0, a.stream, a, backward);
  launch(name, kernel, dim3(static_cast<unsigned>(masked_blocks(a.n))), dim3(kThreads), static_cast<std::size_t>(bytes),
         a.stream, a, MaskedConstants<T>::from(a.map), bytes > 0);
}

}  // namespace

void masked_autoregressive_forward(const MaskedAutoregressiveForward& a) {
  dispatch_real(a.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    run<T>("masked_autoregressive_forward", forward_kernel<T>, a, false);
  });
}

void masked_autoregressive_backward(const MaskedAutoregressiveBackward& a) {
  dispatch_real(a.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    run<T>("masked_autoregressive_backward", backward_kernel<T>, a, true);
    if (a.n > 0 && a.wants_products())
      launch("masked_autoregressive_backward", products_kernel<T>, dim3(static_cast<unsigned>(a.tiles)), dim3(kThreads),
             0, a.stream, a);
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
