// Rational-quadratic spline on the CPU. Lanes are numbers: the parameters of a register's worth of them are transposed
// into columns, so that every step but the look-up of two slopes is one instruction for all lanes. Incomplete blocks
// and half types pass through a buffer of full rows in the compute type.
#include <type_traits>

#include "common/parallel.h"
#include "common/scratch.h"
#include "ops/rq_spline/rq_spline_arrays.h"
#include "ops/rq_spline/rq_spline_math.h"
#include "ops/rq_spline/rq_spline_tile.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int64_t kGrain = 1024;

template <class T>
struct Rows {
  const T *x, *w, *h, *d, *grad_y, *grad_log_det;
  T *y, *log_det, *grad_x, *grad_w, *grad_h, *grad_d;
  int64_t stride_w, stride_h, stride_d;
};

// Lane i from p[at[i]].
template <class P, class T>
GF_HD P gather(const T* p, typename P::IntVec at) {
#if defined(__AVX512F__)
  if constexpr (std::is_same<T, float>::value)
    return P((typename P::Vec)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, (__m512i)at, p, 4));
#endif
  typename P::Int place[P::size];
  T values[P::size];
  memcpy(place, &at, sizeof(place));
  for (int i = 0; i < P::size; ++i) values[i] = p[place[i]];
  return load<P>(values);
}

// The slopes at both ends of each lane's bin, and where they lie.
template <class P>
struct Slopes {
  RqSlope<P> low, high;
  typename P::IntVec low_at, high_at;
};

template <class P, class T>
GF_HD Slopes<P> load_slopes(const T* d, int64_t stride, int slopes, typename P::IntVec k, const RqConstants<T>& c) {
  using I = RqIndex<P>;
  Slopes<P> s;
  P low(0), high(0);
  if (slopes > 0) {
    typename P::Int rows[P::size];
    for (int i = 0; i < P::size; ++i) rows[i] = static_cast<typename P::Int>(i * stride);
    typename P::IntVec row;
    memcpy(&row, rows, sizeof(row));
    s.low_at = row + (k > 0 ? k - 1 : k);
    s.high_at = row + (k < slopes ? k : I::splat(slopes - 1));
    low = gather<P>(d, s.low_at);
    high = gather<P>(d, s.high_at);
  }
  const auto last = c.outer_slope ? I::equal(-1, k) : I::equal(c.bins - 1, k);
  s.low = rq_slope(low, I::equal(0, k), c);
  s.high = rq_slope(high, last, c);
  return s;
}

template <class P, class T>
GF_HD void store_slope_grads(T* grad, int64_t stride, int slopes, const Slopes<P>& s, P low, P high) {
  if (slopes == 0) return;
  if (stride == slopes) {
    memset(grad, 0, P::size * slopes * sizeof(T));
  } else {
    for (int i = 0; i < P::size; ++i) memset(grad + i * stride, 0, slopes * sizeof(T));
  }
  typename P::Int low_at[P::size], high_at[P::size];
  T low_grad[P::size], high_grad[P::size];
  memcpy(low_at, &s.low_at, sizeof(low_at));
  memcpy(high_at, &s.high_at, sizeof(high_at));
  store(low_grad, low);
  store(high_grad, high);
  for (int i = 0; i < P::size; ++i) {
    grad[low_at[i]] = low_grad[i];
    grad[high_at[i]] += high_grad[i];
  }
}

template <class T>
GF_HD auto rq_inside(T v, const RqAxis<scalar_t<T>>& axis) {
  return (v >= T(-axis.bound)) & (v <= T(axis.bound));
}

// The pieces of a block are functions of their own, so that each is compiled once for all who use it: those that know
// the number of bins do not know what is computed, and the other way round.

template <int kBins, class P, class T>
GF_NOINLINE P load_exponentials(const T* logits, int64_t stride, int bins, P* e) {
  const int n = kBins ? kBins : bins;
  if (kBins && stride == kBins)
    load_columns<P::size>(logits, kBins, n, e);
  else
    load_columns<P::size>(logits, stride, n, e);
  return rq_exponentials<kBins>(e, n);
}

template <int kBins, class P, class T>
GF_NOINLINE void store_logit_grads(T* grad, int64_t stride, P* e, typename P::IntVec k, P scale, P r, P knot, P size,
                                   P e_k, const RqConstants<T>& c) {
  const int n = kBins ? kBins : c.bins;
  rq_softmax_adjoint<kBins>(e, k, scale, r, knot, size, e_k, c, [&](int j, P g) { e[j] = g; });
  if (kBins && stride == kBins)
    store_columns<P::size>(grad, kBins, n, e);
  else
    store_columns<P::size>(grad, stride, n, e);
}

template <int kBins, bool kInverse, class P, class T>
GF_NOINLINE void locate(P v, const P* e, P r_w, P r_h, const RqConstants<T>& c, RqBin<P>* bin) {
  *bin = rq_locate<kBins, kInverse>(v, e, e + (kBins ? kBins : c.bins), r_w, r_h, c);
}

template <bool kInverse, class P, class T>
GF_NOINLINE void finish_forward(const Rows<T>& f, int slopes, const RqBin<P>& bin, const RqConstants<T>& c) {
  const P v = load<P>(f.x);
  const Slopes<P> s = load_slopes<P>(f.d, f.stride_d, slopes, bin.k, c);
  const RqPoint<P> p = rq_evaluate<kInverse>(bin, s.low.d, s.high.d, c);
  const auto inside = rq_inside(v, c.axis);
  store(f.y, select(inside, p.y, v));
  store(f.log_det, select(inside, p.log_det, select(v == v, P(0), v)));
}

template <bool kInverse, class P, class T>
GF_NOINLINE RqAdjoint<P> finish_backward(const Rows<T>& f, int slopes, const RqBin<P>& bin, const RqConstants<T>& c) {
  const auto inside = rq_inside(load<P>(f.x), c.axis);
  const Slopes<P> s = load_slopes<P>(f.d, f.stride_d, slopes, bin.k, c);
  const RqPoint<P> p = rq_evaluate<kInverse>(bin, s.low.d, s.high.d, c);
  const P grad_y = load<P>(f.grad_y), grad_log_det = load<P>(f.grad_log_det);
  const RqAdjoint<P> g = rq_adjoint<kInverse>(p, select(inside, grad_y, P(0)), select(inside, grad_log_det, P(0)));
  store(f.grad_x, select(inside, g.v, grad_y));
  store_slope_grads(f.grad_d, f.stride_d, slopes, s, g.d0 * s.low.derivative, g.d1 * s.high.derivative);
  return g;
}

// One register of numbers. `e` is room for 2 bins packs.
template <int kBins, bool kInverse, bool kBackward, class P, class T>
void block(const Rows<T>& f, int slopes, P* e_w, const RqConstants<T>& c) {
  P* e_h = e_w + (kBins ? kBins : c.bins);
  const P v = load<P>(f.x);
  const P r_w = load_exponentials<kBins>(f.w, f.stride_w, c.bins, e_w);
  const P r_h = load_exponentials<kBins>(f.h, f.stride_h, c.bins, e_h);
  RqBin<P> bin;
  locate<kBins, kInverse>(select(rq_inside(v, c.axis), v, P(0)), e_w, r_w, r_h, c, &bin);
  if constexpr (!kBackward) {
    finish_forward<kInverse>(f, slopes, bin, c);
  } else {
    const RqAdjoint<P> g = finish_backward<kInverse>(f, slopes, bin, c);
    store_logit_grads<kBins>(f.grad_w, f.stride_w, e_w, bin.k, bin.scale_w, r_w, g.x, g.w, bin.e_w, c);
    store_logit_grads<kBins>(f.grad_h, f.stride_h, e_h, bin.k, bin.scale_h, r_h, g.y, g.h, bin.e_h, c);
  }
}

// Chooses the code of a number of bins and a direction; float64 has the one for any number.
template <class T>
using Block = void (*)(const Rows<T>&, int slopes, Native<T>* e, const RqConstants<T>&);

template <int kBins, class T>
Block<T> block_of(bool inverse, bool backward) {
  if (inverse) return backward ? block<kBins, true, true, Native<T>, T> : block<kBins, true, false, Native<T>, T>;
  return backward ? block<kBins, false, true, Native<T>, T> : block<kBins, false, false, Native<T>, T>;
}

template <class T>
Block<T> choose_block(int64_t bins, bool inverse, bool backward) {
  if constexpr (std::is_same<T, float>::value) {
    switch (bins) {
      case 4:
        return block_of<4, T>(inverse, backward);
      case 8:
        return block_of<8, T>(inverse, backward);
      case 10:
        return block_of<10, T>(inverse, backward);
      case 16:
        return block_of<16, T>(inverse, backward);
      case 32:
        return block_of<32, T>(inverse, backward);
    }
  }
  return block_of<0, T>(inverse, backward);
}

template <class T, class S>
GF_NOINLINE void copy_in(T* to, const S* from, int64_t stride, int64_t width, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < width; ++j) to[i * width + j] = to_real(from[i * stride + j]);
}
template <class S, class T>
GF_NOINLINE void copy_out(S* to, int64_t stride, const T* from, int64_t width, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < width; ++j) to[i * stride + j] = from_real<S>(from[i * width + j]);
}

template <class S>
void rows(Block<compute_t<S>> block, const Arrays<S>& a, const RqSplineSizes& z, const RqConstants<compute_t<S>>& c,
          int64_t begin, int64_t end) {
  using T = compute_t<S>;
  using P = Native<T>;
  constexpr int kLanes = P::size;
  const bool backward = a.grad_x != nullptr;
  const int slopes = static_cast<int>(z.slopes);
  Scratch<P> columns(2 * z.bins);
  int64_t i = begin;
  if constexpr (std::is_same<S, T>::value) {
    for (; i + kLanes <= end; i += kLanes) {
      const int64_t w = i * z.stride_w, h = i * z.stride_h, d = i * z.stride_d;
      Rows<T> f{};
      f.x = a.x + i, f.w = a.w + w, f.h = a.h + h, f.d = a.d + d;
      f.stride_w = z.stride_w, f.stride_h = z.stride_h, f.stride_d = z.stride_d;
      if (backward) {
        f.grad_y = a.grad_y + i, f.grad_log_det = a.grad_log_det + i, f.grad_x = a.grad_x + i;
        f.grad_w = a.grad_w + w, f.grad_h = a.grad_h + h, f.grad_d = a.grad_d + d;
      } else {
        f.y = a.y + i, f.log_det = a.log_det + i;
      }
      block(f, slopes, columns.get(), c);
    }
  }
  if (i == end) return;

  Scratch<T> memory(kLanes * (6 + 2 * (2 * z.bins + z.slopes)));
  T* next = memory.get();
  const auto take = [&](int64_t width) {
    T* p = next;
    next += kLanes * width;
    return p;
  };
  T *x = take(1), *grad_y = take(1), *grad_log_det = take(1), *y = take(1), *log_det = take(1), *grad_x = take(1);
  T *w = take(z.bins), *h = take(z.bins), *d = take(z.slopes);
  T *grad_w = take(z.bins), *grad_h = take(z.bins), *grad_d = take(z.slopes);
  for (T* p = memory.get(); p < next; ++p) *p = 0;
  const Rows<T> f{x,       w,      h,      d,      grad_y, grad_log_det, y,  //
                  log_det, grad_x, grad_w, grad_h, grad_d, z.bins,       z.bins, z.slopes};
  for (; i < end; i += kLanes) {
    const int64_t count = end - i < kLanes ? end - i : kLanes;
    copy_in(x, a.x + i, 1, 1, count);
    copy_in(w, a.w + i * z.stride_w, z.stride_w, z.bins, count);
    copy_in(h, a.h + i * z.stride_h, z.stride_h, z.bins, count);
    copy_in(d, a.d + i * z.stride_d, z.stride_d, z.slopes, count);
    if (backward) {
      copy_in(grad_y, a.grad_y + i, 1, 1, count);
      copy_in(grad_log_det, a.grad_log_det + i, 1, 1, count);
    }
    block(f, slopes, columns.get(), c);
    if (backward) {
      copy_out(a.grad_x + i, 1, grad_x, 1, count);
      copy_out(a.grad_w + i * z.stride_w, z.stride_w, grad_w, z.bins, count);
      copy_out(a.grad_h + i * z.stride_h, z.stride_h, grad_h, z.bins, count);
      copy_out(a.grad_d + i * z.stride_d, z.stride_d, grad_d, z.slopes, count);
    } else {
      copy_out(a.y + i, 1, y, 1, count);
      copy_out(a.log_det + i, 1, log_det, 1, count);
    }
  }
}

template <class S>
void run(const Arrays<S>& a, const RqSplineSizes& z, const RqSplineOptions& o) {
  using T = compute_t<S>;
  const auto c = rq_constants<T>(z.bins, z.slopes, o.bound, o.min_width, o.min_height, o.min_slope);
  const Block<T> block = choose_block<T>(z.bins, o.inverse, a.grad_x != nullptr);
  parallel_for(z.n, kGrain, [&](int64_t begin, int64_t end) { rows(block, a, z, c, begin, end); });
}

}  // namespace

void rq_spline_forward(const RqSplineForward& f) {
  dispatch_float(f.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    run(arrays<S>(f), f.size, f.options);
  });
}

void rq_spline_backward(const RqSplineBackward& f) {
  dispatch_float(f.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    run(arrays<S>(f), f.size, f.options);
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
