// Affine maps of channels on CUDA. A thread owns a pixel; the pixels of a block lie in shared memory as
// [channel][pixel], where they run through all parts of the map. What threads read together is the same number of a
// matrix, and their own of a pixel.
#include "common/launch.cuh"
#include "common/rows.cuh"
#include "ops/channel_affine/channel_affine_math.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int kMostChannels = 128;  // fewer, where PyTorch takes over (genfast/ops/_channel_products.py)

// Shared memory of a block of `threads` pixels: matrices for `triangle`, vectors of parameters, and pixels.
template <class T>
struct Shared {
  T *m, *diag, *undiag, *scale, *unscale, *shift, *bias, *log_det;
  int64_t* order;
  T* pixels;       // channel i of pixel q at [i * stride + q]
  int64_t stride;  // odd, so that neighbouring channels lie in different banks

  __device__ __forceinline__ Shared(const ChannelMap& f, int threads) {
    const int64_t padded = padded_channels(f.c);
    order = dynamic_shared<int64_t>();
    m = reinterpret_cast<T*>(order + padded);
    diag = m + (f.lower != nullptr ? padded * padded : 0);
    undiag = diag + padded, scale = undiag + padded, unscale = scale + padded, shift = unscale + padded;
    bias = shift + padded, log_det = bias + padded;
    pixels = log_det + padded;
    stride = threads + 1;
  }
};

template <class T>
std::size_t shared_bytes(const ChannelMap& f, int threads, int buffers) {
  const int64_t padded = padded_channels(f.c);
  return static_cast<std::size_t>(padded) * sizeof(int64_t) +
         static_cast<std::size_t>((f.lower != nullptr ? padded * padded : 0) + 7 * padded +
                                  buffers * padded * (threads + 1)) *
             sizeof(T);
}

template <class T>
__device__ __forceinline__ T parameter(const ChannelMap& f, const void* p, int64_t i, T missing) {
  return p != nullptr ? load_number<T>(p, f.dtype, i) : missing;
}

template <class T>
__device__ __forceinline__ Diagonal<T> diagonal_of(const ChannelMap& f, int64_t i) {
  return channel_diagonal(f, load_number<T>(f.diag, f.dtype, i), parameter<T>(f, f.sign, i, T(1)));
}

// A matrix in shared memory, or its transpose.
template <class T>
struct Entries {
  const T* m;
  int64_t row, col;
  __device__ __forceinline__ T operator()(int64_t i, int64_t j) const { return m[i * row + j * col]; }
};

// Brings the parameters to shared memory: scales and diagonals and their inverses; both triangles without their
// diagonals in one matrix; log|det| of a pixel; and the permutation, -1 where it is none.
template <class T>
__device__ __forceinline__ void load_parameters(const ChannelMap& f, const Shared<T>& s) {
  const int64_t c = f.c, padded = padded_channels(c);
  const int thread = block_thread(), threads = block_threads();
  if (f.lower != nullptr)
    for (int64_t e = thread; e < padded * padded; e += threads) {
      const int64_t i = e / padded, j = e % padded;
      const bool inside = i < c && j < c && i != j;
      s.m[e] = inside ? load_number<T>(i > j ? f.lower : f.upper, f.dtype, i * c + j) : T(0);
    }
  for (int64_t i = thread; i < padded; i += threads) {
    T log_abs = 0;
    s.scale[i] = s.unscale[i] = s.diag[i] = s.undiag[i] = T(1), s.shift[i] = s.bias[i] = T(0);
    if (i < c) {
      if (f.log_scale != nullptr) {
        const T log_s = saturated(load_number<T>(f.log_scale, f.dtype, i));
        s.scale[i] = exp(log_s), s.unscale[i] = exp(-log_s);
        log_abs += log_s;
      }
      s.shift[i] = parameter<T>(f, f.shift, i, T(0));
      s.bias[i] = parameter<T>(f, f.bias, i, T(0));
      if (f.lower != nullptr) {
        const Diagonal<T> diagonal = diagonal_of<T>(f, i);
        s.diag[i] = diagonal.d, s.undiag[i] = T(1) / diagonal.d;
        log_abs += diagonal.log_abs;
      }
    }
    s.log_det[i] = log_abs;
    s.order[i] = i;
  }
  __syncthreads();
  if (f.permutation != nullptr) {
    // Entry i is in order if it is in range and no other has its value.
    for (int64_t i = thread; i < c; i += threads) {
      const int64_t at = f.permutation[i];
      bool valid = at >= 0 && at < c;
      for (int64_t k = 0; k < c; ++k) valid = valid && (k == i || f.permutation[k] != at);
      s.order[i] = valid ? at : -1;
    }
  }
  if (thread == 0)
    for (int64_t i = 1; i < c; ++i) s.log_det[0] += s.log_det[i];
  __syncthreads();
}

// Whether the permutation is one.
template <class T>
__device__ __forceinline__ bool in_order(const ChannelMap& f, const Shared<T>& s) {
  bool valid = true;
  for (int64_t i = 0; i < f.c; ++i) valid = valid && s.order[i] >= 0;
  return valid;
}

// Where channel i of pixel r lies.
__device__ __forceinline__ int64_t place_of(const ChannelMap& f, int64_t r, int64_t i) {
  if (f.channels_last) return r * f.c + i;
  const int64_t image = f.image();
  return (r / image * f.c + i) * image + r % image;
}

// f(channel, pixel of the block) for all numbers of the pixels first ... first + count - 1; neighbouring threads get
// neighbouring numbers.
template <class F>
__device__ __forceinline__ void each_number(const ChannelMap& f, int64_t count, F&& function) {
  for (int64_t e = block_thread(); e < count * f.c; e += block_threads()) {
    if (f.channels_last) {
      function(e % f.c, e / f.c);
    } else {
      function(e / count, e % count);
    }
  }
}

template <class T>
__device__ __forceinline__ void load_pixels(const ChannelMap& f, const Shared<T>& s, const void* p, int64_t first,
                                            int64_t count, T* to) {
  const int64_t padded = padded_channels(f.c);
  if (count < block_threads() || padded > f.c)
    for (int64_t e = block_thread(); e < padded * s.stride; e += block_threads()) to[e] = T(0);
  __syncthreads();
  each_number(f, count, [&](int64_t i, int64_t q) {
    to[i * s.stride + q] = load_number<T>(p, f.dtype, place_of(f, first + q, i));
  });
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(128, 2) channel_forward_kernel(ChannelForward a) {
  const ChannelMap& f = a.map;
  const int threads = block_threads(), thread = block_thread();
  const Shared<T> s(f, threads);
  load_parameters(f, s);
  const T image = static_cast<T>(f.image()), nan = T(__builtin_nanf(""));
  const bool valid = in_order(f, s);
  for (int64_t i = grid_thread(); i < f.n; i += grid_threads())
    static_cast<T*>(a.log_det)[i] = image == T(0) ? T(0) : f.inverse ? -image * s.log_det[0] : image * s.log_det[0];
  const int64_t padded = padded_channels(f.c);
  T *x = s.pixels + thread, *y = s.pixels + padded * s.stride + thread;
  const Entries<T> m{s.m, padded, 1};
  const T* none = nullptr;  // a diagonal of ones
  const auto in = [&](int64_t i) -> T& { return x[i * s.stride]; };
  const auto out = [&](int64_t i) -> T& { return y[i * s.stride]; };
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * threads; first < f.pixels();
       first += static_cast<int64_t>(gridDim.x) * threads) {
    const int64_t count = f.pixels() - first < threads ? f.pixels() - first : threads;
    load_pixels(f, s, a.input, first, count, s.pixels);
    for (int64_t i = f.c; i < padded; ++i) out(i) = T(0);
    if (f.inverse) {
      for (int64_t i = 0; i < f.c; ++i) out(s.order[i] < 0 ? i : s.order[i]) = in(i) - s.bias[i];
      if (f.lower != nullptr) {
        triangle<false, true, kChannelGroup, T>(padded, m, none, out);
        triangle<true, true, kChannelGroup, T>(padded, m, s.undiag, out);
      }
      for (int64_t i = 0; i < f.c; ++i) out(i) = (out(i) - s.shift[i]) * s.unscale[i];
    } else {
      for (int64_t i = 0; i < f.c; ++i) in(i) = fma(s.scale[i], in(i), s.shift[i]);
      if (f.lower != nullptr) {
        triangle<true, false, kChannelGroup, T>(padded, m, s.diag, in);
        triangle<false, false, kChannelGroup, T>(padded, m, none, in);
      }
      for (int64_t i = 0; i < f.c; ++i) out(i) = in(s.order[i] < 0 ? i : s.order[i]) + s.bias[i];
    }
    __syncthreads();
    each_number(f, count, [&](int64_t i, int64_t q) {
      const T number = s.pixels[(padded + i) * s.stride + q];
      store_number(a.output, f.dtype, place_of(f, first + q, i), valid ? number : nan);
    });
    __syncthreads();
  }
}

// Of a chunk of pixels: the gradient of the input, and the chunk's sums in the workspace.
template <class T>
__global__ void __launch_bounds__(128, 2) channel_backward_kernel(ChannelBackward a) {
  const ChannelMap& f = a.map;
  const int threads = block_threads(), thread = block_thread();
  const Shared<T> s(f, threads);
  load_parameters(f, s);
  const bool valid = in_order(f, s), lu = f.lower != nullptr;
  const T nan = T(__builtin_nanf(""));
  const int64_t c = f.c, padded = padded_channels(c), image = f.image(), matrix = lu ? c * c : 0;
  const int64_t length = pixels_per_chunk(f.pixels(), true), begin = blockIdx.x * length;
  const int64_t end = begin + length < f.pixels() ? begin + length : f.pixels();
  T* part = static_cast<T*>(a.workspace) + blockIdx.x * channel_sums(f);
  T *bias = part + matrix, *log_scale = bias + c, *shift = log_scale + c, *log_det = shift + c;
  for (int64_t i = thread; i < channel_sums(f); i += threads) part[i] = valid ? T(0) : nan;
  T total = 0;  // of log_det, for the images that begin in this chunk
  if (image > 0)
    for (int64_t n = (begin + image - 1) / image + thread; n * image < end; n += threads)
      total += static_cast<const T*>(a.grad_log_det)[n];
  total = block_sum(total);
  if (thread == 0) *log_det = total;
  __syncthreads();

  T *of_u = s.pixels, *of_g = s.pixels + padded * s.stride;
  T *mine_u = of_u + thread, *mine_g = of_g + thread;
  const auto u = [&](int64_t i) -> T& { return mine_u[i * s.stride]; };
  const auto g = [&](int64_t i) -> T& { return mine_g[i * s.stride]; };
  const Entries<T> m{s.m, padded, 1}, transposed{s.m, 1, padded};
  const T* none = nullptr;  // a diagonal of ones
  // g z^T below the diagonal, or on it and above, z = u or what came of it: each thread has its entries.
  const auto add_products = [&](bool above) {
    for (int64_t e = thread; e < matrix; e += threads) {
      const int64_t i = e / c, j = e % c;
      if (above != (i <= j)) continue;
      const T *row = of_g + i * s.stride, *col = of_u + j * s.stride, shift_j = above ? s.shift[j] : T(0);
      const T scale = i == j ? s.diag[i] : T(1);
      T sum = 0;
      for (int q = 0; q < threads; ++q) sum = fma(row[q], (col[q] + shift_j) * scale, sum);
      part[e] += sum;
    }
  };
  // Sums of g, or of g u, over the pixels of the block.
  const auto add_numbers = [&](T* to, bool times_u) {
    for (int64_t i = thread; i < c; i += threads) {
      T sum = 0;
      for (int q = 0; q < threads; ++q) {
        const T number = of_g[i * s.stride + q];
        sum += times_u ? number * of_u[i * s.stride + q] : number;
      }
      to[i] += sum;
    }
  };
  for (int64_t first = begin; first < end; first += threads) {
    const int64_t count = end - first < threads ? end - first : threads;
    load_pixels(f, s, a.kept, first, count, of_u);
    load_pixels(f, s, a.grad_output, first, count, of_g);
    const auto scale_u = [&] {
      for (int64_t i = 0; i < c; ++i) u(i) *= s.scale[i];
      __syncthreads();
    };
    const auto u_to_v = [&] {
      for (int64_t i = 0; i < c; ++i) u(i) += s.shift[i];
      triangle<true, false, kChannelGroup, T>(padded, m, s.diag, u);
      __syncthreads();
    };
    if (!f.inverse) {
      add_numbers(bias, false);
      __syncthreads();
      if (f.permutation != nullptr) {  // through the buffer of u, which is loaded again
        for (int64_t i = 0; i < c; ++i) u(s.order[i] < 0 ? i : s.order[i]) = g(i);
        for (int64_t i = 0; i < c; ++i) g(i) = u(i);
        __syncthreads();
        load_pixels(f, s, a.kept, first, count, of_u);
      }
      scale_u();
      if (lu) {
        u_to_v();
        add_products(false);
        __syncthreads();
        triangle<true, false, kChannelGroup, T>(padded, transposed, none, g);
        load_pixels(f, s, a.kept, first, count, of_u);
        scale_u();
        add_products(true);
        __syncthreads();
        triangle<false, false, kChannelGroup, T>(padded, transposed, s.diag, g);
        __syncthreads();
      }
      add_numbers(shift, false);
      add_numbers(log_scale, true);
      __syncthreads();
      for (int64_t i = 0; i < c; ++i) g(i) = s.scale[i] * g(i);
    } else {
      for (int64_t i = 0; i < c; ++i) g(i) = s.unscale[i] * g(i);
      scale_u();
      add_numbers(shift, false);
      add_numbers(log_scale, true);
      __syncthreads();
      if (lu) {
        triangle<false, true, kChannelGroup, T>(padded, transposed, s.undiag, g);
        __syncthreads();
        add_products(true);
        __syncthreads();
        u_to_v();
        triangle<true, true, kChannelGroup, T>(padded, transposed, none, g);
        __syncthreads();
        add_products(false);
        __syncthreads();
      }
      if (f.permutation != nullptr) {
        for (int64_t i = 0; i < c; ++i) u(i) = g(s.order[i] < 0 ? i : s.order[i]);
        for (int64_t i = 0; i < c; ++i) g(i) = u(i);
      }
      __syncthreads();
      add_numbers(bias, false);
    }
    __syncthreads();
    each_number(f, count, [&](int64_t i, int64_t q) {
      store_number(a.grad_input, f.dtype, place_of(f, first + q, i), valid ? of_g[i * s.stride + q] : nan);
    });
    __syncthreads();
  }
}

constexpr int kSumWarps = 4;

template <class T>
__global__ void __launch_bounds__(32 * kSumWarps) channel_sums_kernel(T* workspace, int64_t chunks, int64_t width) {
  sum_chunks<1, kSumWarps>(
      static_cast<const T*>(workspace), chunks, width, width, [&](int64_t i, int) { return i; },
      [&](int64_t i, const T(&total)[1]) { workspace[chunks * width + i] = total[0]; });
}

// The gradients of the parameters, from the sums over pixels: an entry of the matrices a thread.
template <class T>
__global__ void __launch_bounds__(128) channel_parameters_kernel(ChannelBackward a, const T* totals) {
  const ChannelMap& f = a.map;
  const ChannelTotals<T> sums(f, totals);
  const int64_t c = f.c, lu = f.lower != nullptr;
  const T sign = f.inverse ? T(-1) : T(1);
  for (int64_t e = grid_thread(); e < (lu ? c * c : c); e += grid_threads()) {
    const int64_t i = lu ? e / c : e, j = lu ? e % c : e;
    if (lu) {
      const T total = sign * sums.weights[e];
      if (a.grad_lower != nullptr) store_number(a.grad_lower, f.dtype, e, i > j ? total : T(0));
      if (a.grad_upper != nullptr) store_number(a.grad_upper, f.dtype, e, i < j ? total : T(0));
      if (i == j && a.grad_diag != nullptr)
        store_number(a.grad_diag, f.dtype, i, grad_of_diagonal(f, sums, i, diagonal_of<T>(f, i)));
    }
    if (i != j) continue;
    if (a.grad_bias != nullptr) store_number(a.grad_bias, f.dtype, i, sign * sums.bias[i]);
    if (a.grad_shift != nullptr) store_number(a.grad_shift, f.dtype, i, sign * sums.shift[i]);
    if (a.grad_log_scale != nullptr) {
      const T log_scale = load_number<T>(f.log_scale, f.dtype, i);
      store_number(a.grad_log_scale, f.dtype, i, grad_of_log_scale(f, sums, i, log_scale));
    }
  }
}

// Threads, and so pixels, of a block: as many as shared memory has room for.
template <class T>
int threads_for(const ChannelMap& f) {
  if (f.lower != nullptr && f.c > kMostChannels)
    throw std::invalid_argument("channel_affine on CUDA: at most " + std::to_string(kMostChannels) + " channels");
  int threads = 128;
  while (threads > 32 && shared_bytes<T>(f, threads, 2) > kMaxShared / 3) threads /= 2;
  row_bytes("channel_affine", shared_bytes<T>(f, threads, 2), kMaxShared / (66 * sizeof(T) + 48));
  return threads;
}

template <class T>
void run_forward(const ChannelForward& a) {
  const int threads = threads_for<T>(a.map);
  const int64_t pixels = a.map.pixels() > a.map.n ? a.map.pixels() : a.map.n;
  launch("channel_affine_forward", channel_forward_kernel<T>, dim3(blocks_for(pixels, threads, 4096)), dim3(threads),
         shared_bytes<T>(a.map, threads, 2), a.stream, a);
}

template <class T>
void run_backward(const ChannelBackward& a) {
  const int threads = threads_for<T>(a.map);
  const int64_t chunks = pixel_chunks(a.map.pixels(), true), width = channel_sums(a.map), c = a.map.c;
  T* workspace = static_cast<T*>(a.workspace);
  launch("channel_affine_backward", channel_backward_kernel<T>, dim3(static_cast<unsigned>(chunks)), dim3(threads),
         shared_bytes<T>(a.map, threads, 2), a.stream, a);
  launch("channel_affine_sums", channel_sums_kernel<T>, dim3(blocks_for(width, kWarpSize)), dim3(32 * kSumWarps), 0,
         a.stream, workspace, chunks, width);
  launch("channel_affine_parameters", channel_parameters_kernel<T>, dim3(blocks_for(c * c, 128)), dim3(128), 0,
         a.stream, a, static_cast<const T*>(workspace + chunks * width));
}

}  // namespace

void channel_affine_forward(const ChannelForward& a) {
  dispatch_real(a.map.dtype, [&](auto tag) { run_forward<typename decltype(tag)::type>(a); });
}

void channel_affine_backward(const ChannelBackward& a) {
  dispatch_real(a.map.dtype, [&](auto tag) { run_backward<typename decltype(tag)::type>(a); });
}

}  // namespace GF_BACKEND
}  // namespace gf
