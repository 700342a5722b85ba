// Rational-quadratic spline on the CPU. Lanes are numbers: the parameters of a register's worth of them are transposed
// into columns, so that every step but the look-up of two slopes is one instruction for all lanes. Incomplete blocks,
// half types and rows that a few numbers share pass through a buffer of full rows in the compute type; a row that more
// numbers share than a register holds is made a table once a chunk.
#include <type_traits>

#include "common/parallel.h"
#include "common/scratch.h"
#include "common/tile.h"
#include "ops/rq_spline/rq_spline_arrays.h"
#include "ops/rq_spline/rq_spline_math.h"
#include "ops/rq_spline/rq_spline_shared.h"
#include "ops/rq_spline/rq_spline_table.h"

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
    typename P::IntVec row, at = k + I::splat(c.first_slope), next = at + 1;
    memcpy(&row, rows, sizeof(row));
    s.low_at = row + (at > 0 ? at : I::splat(0));
    s.high_at = row + (next < slopes ? next : I::splat(c.last_slope));
    low = gather<P>(d, s.low_at);
    high = gather<P>(d, s.high_at);
  }
  s.low = rq_slope(low, I::equal(c.fixed_first, k), c);
  s.high = rq_slope(high, I::equal(c.fixed_last, k), c);
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

// The pieces of a block are functions of their own, so that each is compiled once for all who use it: those that know
// the number of bins do not know what is computed, and the other way round.

// `clipped` is where the 1 / (1 + |w| A) of zuko's dialect go; null in others.
template <int kBins, class P, class T>
GF_NOINLINE P load_exponentials(const T* logits, int64_t stride, P* e, P* clipped, const RqConstants<T>& c) {
  const int n = kBins ? kBins : c.bins;
  if (kBins && stride == kBins)
    load_columns<P::size>(logits, kBins, n, e);
  else
    load_columns<P::size>(logits, stride, n, e);
  if (clipped)
    for (int j = 0; j < n; ++j) clipped[j] = rq_soft_clip(e + j, P(c.clip_logits));
  return rq_exponentials<kBins>(e, n);
}

template <int kBins, class P, class T>
GF_NOINLINE void store_logit_grads(T* grad, int64_t stride, P* e, const P* clipped, typename P::IntVec k, P scale, P r,
                                   P knot, P size, P e_k, T unit, const RqConstants<T>& c) {
  const int n = kBins ? kBins : c.bins;
  rq_softmax_adjoint<kBins>(e, k, scale, r, knot, size, e_k, unit, n, [&](int j, P g) { e[j] = g; });
  if (clipped)
    for (int j = 0; j < n; ++j) e[j] *= clipped[j] * clipped[j];
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
  const auto inside = rq_inside<kInverse>(v, c);
  store(f.y, select(inside, p.y, v + P(c.outside)));
  store(f.log_det, select(inside, p.log_det, select(v == v, P(c.outside), v)));
}

template <bool kInverse, class P, class T>
GF_NOINLINE RqAdjoint<P> finish_backward(const Rows<T>& f, int slopes, const RqBin<P>& bin, const RqConstants<T>& c) {
  const auto inside = rq_inside<kInverse>(load<P>(f.x), c);
  const Slopes<P> s = load_slopes<P>(f.d, f.stride_d, slopes, bin.k, c);
  const RqPoint<P> p = rq_evaluate<kInverse>(bin, s.low.d, s.high.d, c);
  const P grad_y = load<P>(f.grad_y), grad_log_det = load<P>(f.grad_log_det);
  const RqAdjoint<P> g = rq_adjoint<kInverse>(p, select(inside, grad_y, P(0)), select(inside, grad_log_det, P(0)));
  store(f.grad_x, select(inside, g.v, c.closed ? P(0) : grad_y));
  store_slope_grads(f.grad_d, f.stride_d, slopes, s, g.d0 * s.low.derivative, g.d1 * s.high.derivative);
  return g;
}

// One register of numbers. `e_w` is room for 4 bins packs.
template <int kBins, bool kInverse, bool kBackward, class P, class T>
void block(const Rows<T>& f, int slopes, P* e_w, const RqConstants<T>& c) {
  const int n = kBins ? kBins : c.bins;
  P *e_h = e_w + n, *clipped_w = c.zuko ? e_h + n : nullptr, *clipped_h = c.zuko ? e_h + 2 * n : nullptr;
  const P r_w = load_exponentials<kBins>(f.w, f.stride_w, e_w, clipped_w, c);
  const P r_h = load_exponentials<kBins>(f.h, f.stride_h, e_h, clipped_h, c);
  RqBin<P> bin;
  locate<kBins, kInverse>(rq_inner<kInverse>(load<P>(f.x), c), e_w, r_w, r_h, c, &bin);
  if constexpr (!kBackward) {
    finish_forward<kInverse>(f, slopes, bin, c);
  } else {
    const RqAdjoint<P> g = finish_backward<kInverse>(f, slopes, bin, c);
    store_logit_grads<kBins>(f.grad_w, f.stride_w, e_w, clipped_w, bin.k, bin.scale_w, r_w, g.x, g.w, bin.e_w, c.unit_w,
                             c);
    store_logit_grads<kBins>(f.grad_h, f.stride_h, e_h, clipped_h, bin.k, bin.scale_h, r_h, g.y, g.h, bin.e_h, c.unit_h,
                             c);
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

// Rows begin ... end of parameters, each read by `repeats` numbers, no more than lanes.
template <class S>
void rows(Block<compute_t<S>> block, const Arrays<S>& a, const RqSplineSizes& z, const RqConstants<compute_t<S>>& c,
          int64_t begin, int64_t end) {
  using T = compute_t<S>;
  using P = Native<T>;
  constexpr int kLanes = P::size;
  const bool backward = a.grad_w != nullptr;
  const int slopes = static_cast<int>(z.slopes);
  Scratch<P> columns(4 * z.bins);
  int64_t i = begin;
  if constexpr (std::is_same<S, T>::value) {
    for (; z.repeats == 1 && i + kLanes <= end; i += kLanes) {
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
  const int64_t at_once = kLanes / z.repeats;
  for (; i < end; i += at_once) {
    const int64_t count = end - i < at_once ? end - i : at_once;
    const int lanes = static_cast<int>(count * z.repeats);
    int64_t at[kLanes], *next_at = at;
    for (int64_t row = i; row < i + count; ++row)
      for_runs(z, row, 0, static_cast<int>(z.repeats), [&](int, int64_t first, int length) {
        for (int v = 0; v < length; ++v) *next_at++ = first + v;
      });
    for (int lane = 0; lane < lanes; ++lane) x[lane] = to_real(a.x[at[lane]]);
    copy_in(w, a.w + i * z.stride_w, z.stride_w, z.bins, count, z.repeats);
    copy_in(h, a.h + i * z.stride_h, z.stride_h, z.bins, count, z.repeats);
    copy_in(d, a.d + i * z.stride_d, z.stride_d, z.slopes, count, z.repeats);
    if (backward) {
      for (int lane = 0; lane < lanes; ++lane) {
        grad_y[lane] = to_real(a.grad_y[at[lane]]);
        grad_log_det[lane] = a.grad_log_det[at[lane]];
      }
    }
    block(f, slopes, columns.get(), c);
    if (backward) {
      for (int lane = 0; lane < lanes; ++lane) a.grad_x[at[lane]] = from_real<S>(grad_x[lane]);
      copy_out(a.grad_w + i * z.stride_w, z.stride_w, grad_w, z.bins, count, z.repeats);
      copy_out(a.grad_h + i * z.stride_h, z.stride_h, grad_h, z.bins, count, z.repeats);
      copy_out(a.grad_d + i * z.stride_d, z.stride_d, grad_d, z.slopes, count, z.repeats);
    } else {
      for (int lane = 0; lane < lanes; ++lane) {
        a.y[at[lane]] = from_real<S>(y[lane]);
        a.log_det[at[lane]] = log_det[lane];
      }
    }
  }
}

// --- many numbers a row ---

constexpr int kTile = 256;

// Numbers of one row, side by side.
template <class T>
struct Tile {
  alignas(64) T x[kTile], grad_y[kTile], grad_log_det[kTile];
  alignas(64) T y[kTile], log_det[kTile];  // in the backward the first holds the gradient of x
};

template <bool kInverse, class T>
GF_NOINLINE void tile_forward(Tile<T>* f, int count, const RqTable<T>& table, const RqConstants<T>& c) {
  using P = Native<T>;
  for (int i = 0; i < count; i += P::size) {
    const P v = load<P>(f->x + i);
    const auto inside = rq_inside<kInverse>(v, c);
    RqBin<P> bin;
    RqShape<P> shape;
    table.template locate<kInverse>(rq_inner<kInverse>(v, c), &bin, &shape);
    const RqPoint<P> p = rq_evaluate<kInverse>(bin, shape, c);
    store(f->y + i, select(inside, p.y, v + P(c.outside)));
    store(f->log_det + i, select(inside, p.log_det, select(v == v, P(c.outside), v)));
  }
}

// Adds to the sums of the bins. Numbers outside the square, NaN among them, add nothing.
template <bool kInverse, class T>
GF_NOINLINE void tile_backward(Tile<T>* f, int count, const RqTable<T>& table, const RqConstants<T>& c, double* sums) {
  using P = Native<T>;
  using Wide = Native<double>;
  for (int i = 0; i < count; i += P::size) {
    const P v = load<P>(f->x + i), grad_y = load<P>(f->grad_y + i);
    const auto inside = rq_inside<kInverse>(v, c);
    RqBin<P> bin;
    RqShape<P> shape;
    table.template locate<kInverse>(rq_inner<kInverse>(v, c), &bin, &shape);
    const RqPoint<P> p = rq_evaluate<kInverse>(bin, shape, c);
    const RqAdjoint<P> g = rq_adjoint<kInverse>(p, grad_y, load<P>(f->grad_log_det + i));
    store(f->y + i, select(inside, g.v, c.closed ? P(0) : grad_y));

    P columns[kRqSums] = {g.x, g.w, g.y, g.h, g.d0, g.d1, P(0), P(0)};
    for (int q = 0; q < kRqCotangents; ++q) columns[q] = select(inside, columns[q], P(0));
    alignas(64) T added[P::size * kRqSums];
    typename P::Int k[P::size];
    store_columns<P::size>(added, kRqSums, kRqSums, columns);
    memcpy(k, &bin.k, sizeof(k));
    for (int lane = 0; lane < P::size; ++lane) {
      double* to = sums + k[lane] * kRqSums;
      for (int q = 0; q < kRqSums; q += Wide::size) {
        Pack<T, Wide::size> part;
        memcpy(&part, added + lane * kRqSums + q, sizeof(part));
        store(to + q, load<Wide>(to + q) + Wide(__builtin_convertvector(part.v, typename Wide::Vec)));
      }
    }
  }
}

// Numbers begin ... end of a row.
template <class S, class T>
void one_row(const Arrays<S>& a, const RqSplineSizes& z, const RqConstants<T>& c, bool inverse, int64_t row,
             int64_t begin, int64_t end, RqTable<T>* table, double* sums) {
  const bool backward = a.grad_w != nullptr;
  copy_in(table->widths(), a.w + row * z.stride_w, 0, z.bins, 1, 1);
  copy_in(table->heights(), a.h + row * z.stride_h, 0, z.bins, 1, 1);
  copy_in(table->slopes(), a.d + row * z.stride_d, 0, c.slopes_read, 1, 1);
  table->build();
  if (backward) memset(sums, 0, z.bins * kRqSums * sizeof(double));
  Tile<T> f;
  for (int64_t v = begin; v < end; v += kTile) {
    const int count = end - v < kTile ? static_cast<int>(end - v) : kTile;
    for_runs(z, row, v, count, [&](int to, int64_t at, int length) {
      for (int i = 0; i < length; ++i) f.x[to + i] = to_real(a.x[at + i]);
      if (!backward) return;
      for (int i = 0; i < length; ++i) f.grad_y[to + i] = to_real(a.grad_y[at + i]);
      for (int i = 0; i < length; ++i) f.grad_log_det[to + i] = a.grad_log_det[at + i];
    });
    for (int i = count; i % Native<T>::size != 0; ++i)
      f.x[i] = static_cast<T>(NAN), f.grad_y[i] = f.grad_log_det[i] = 0;
    if (backward)
      (inverse ? tile_backward<true, T> : tile_backward<false, T>)(&f, count, *table, c, sums);
    else
      (inverse ? tile_forward<true, T> : tile_forward<false, T>)(&f, count, *table, c);
    for_runs(z, row, v, count, [&](int from, int64_t at, int length) {
      S* to = (backward ? a.grad_x : a.y) + at;
      for (int i = 0; i < length; ++i) to[i] = from_real<S>(f.y[from + i]);
      if (backward) return;
      for (int i = 0; i < length; ++i) a.log_det[at + i] = f.log_det[from + i];
    });
  }
}

template <class S>
void row_gradients(const Arrays<S>& a, const RqSplineSizes& z, const RqConstants<compute_t<S>>& c, int64_t row,
                   const double* sums) {
  const int64_t w = row * z.stride_w, h = row * z.stride_h, d = row * z.stride_d;
  rq_logit_gradients(a.w + w, sums, c.free_w * c.x.unit, c, a.grad_w + w);
  rq_logit_gradients(a.h + h, sums + 2, c.free_h * c.y.unit, c, a.grad_h + h);
  rq_slope_gradients(a.d + d, sums, static_cast<int>(z.slopes), c, a.grad_d + d);
}

template <class S>
void shared_rows(const Arrays<S>& a, const RqSplineSizes& z, const RqConstants<compute_t<S>>& c,
                 const RqConstants<double>& wide, bool inverse, double* workspace) {
  using T = compute_t<S>;
  const bool backward = a.grad_w != nullptr;
  const SharedChunks chunks = shared_chunks(z);
  const int64_t size = z.bins * kRqSums, longest = z.repeats < chunks.numbers ? z.repeats : chunks.numbers;
  parallel_for(chunks.count * z.all_rows, longest < kGrain ? kGrain / (longest + 16) + 1 : 1,
               [&](int64_t first, int64_t last) {
                 RqTable<T> table(c, wide);
                 Scratch<double> own(chunks.count == 1 ? size : 0);
                 for (int64_t unit = first; unit < last; ++unit) {
                   const int64_t row = unit % z.all_rows, begin = unit / z.all_rows * chunks.numbers;
                   const int64_t end = begin + chunks.numbers < z.repeats ? begin + chunks.numbers : z.repeats;
                   double* sums = chunks.count == 1 ? own.get() : workspace + unit * size;
                   one_row(a, z, c, inverse, row, begin, end, &table, sums);
                   if (backward && chunks.count == 1) row_gradients(a, z, c, row, sums);
                 }
               });
  if (!backward || chunks.count == 1) return;
  parallel_for(z.all_rows, 16, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      double* sums = workspace + row * size;
      for (int64_t chunk = 1; chunk < chunks.count; ++chunk)
        for (int64_t q = 0; q < size; ++q) sums[q] += sums[chunk * z.all_rows * size + q];
      row_gradients(a, z, c, row, sums);
    }
  });
}

template <class S>
void run(const Arrays<S>& a, const RqSplineSizes& z, const RqSplineOptions& o, double* workspace) {
  using T = compute_t<S>;
  const auto c = rq_constants<T>(z.bins, z.slopes, o);
  if (z.repeats < 1 || z.repeats > Native<T>::size) {
    const auto wide = rq_constants<double>(z.bins, z.slopes, o);
    return shared_rows(a, z, c, wide, o.inverse, workspace);
  }
  const Block<T> block = choose_block<T>(z.bins, o.inverse, a.grad_w != nullptr);
  parallel_for(z.all_rows, (kGrain + z.repeats - 1) / z.repeats,
               [&](int64_t begin, int64_t end) { rows(block, a, z, c, begin, end); });
}

}  // namespace

void rq_spline_forward(const RqSplineForward& f) {
  dispatch_float(f.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    run(arrays<S>(f), f.size, f.options, nullptr);
  });
}

void rq_spline_backward(const RqSplineBackward& f) {
  dispatch_float(f.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    run(arrays<S>(f), f.size, f.options, f.workspace);
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
