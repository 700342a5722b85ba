// Affine coupling on the CPU. The elements are cut into flat tiles, of several whole rows or of a part of a wide one,
// so that lanes are full for D = 1 too. An operand that does not lie flat in memory, or is of a half type, is gathered
// into a buffer of the tile; the arithmetic sees plain arrays.
#include "common/parallel.h"
#include "ops/coupling/coupling_math.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int kTile = 512;         // elements
constexpr int64_t kGrain = 16384;  // elements a thread takes at a time

struct Tile {
  int64_t row, col;
  int rows, cols;
  int count() const { return rows * cols; }
};

// f(tile) over all tiles of the rows [begin, end), a row's tiles in order.
template <class F>
void for_tiles(int64_t begin, int64_t end, int64_t d, F&& f) {
  if (d > kTile) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j < d; j += kTile) f(Tile{i, j, 1, static_cast<int>(d - j < kTile ? d - j : kTile)});
    return;
  }
  const int64_t rows = kTile / d;
  for (int64_t i = begin; i < end; i += rows)
    f(Tile{i, 0, static_cast<int>(end - i < rows ? end - i : rows), static_cast<int>(d)});
}

template <class S, class T>
void gather(const S* p, int64_t stride, int n, T* out, int64_t out_stride) {
  if (stride == 1 && out_stride == 1) {
    using P = Native<T>;
    int i = 0;
    for (; i + P::size <= n; i += P::size) store(out + i, load<P>(p + i));
    for (; i < n; ++i) out[i] = to_real(p[i]);
  } else if (stride == 2 && out_stride == 1) {
    for (int i = 0; i < n; ++i) out[i] = to_real(p[2 * i]);
  } else {
    for (int i = 0; i < n; ++i) out[i * out_stride] = to_real(p[i * stride]);
  }
}

template <class S, class T>
void scatter(const T* in, int64_t in_stride, int n, S* p, int64_t stride) {
  if (stride == 1 && in_stride == 1) {
    using P = Native<T>;
    int i = 0;
    for (; i + P::size <= n; i += P::size) store(p + i, load<P>(in + i));
    for (; i < n; ++i) p[i] = from_real<S>(in[i]);
  } else if (stride == 2 && in_stride == 1) {
    for (int i = 0; i < n; ++i) p[2 * i] = from_real<S>(in[i]);
  } else {
    for (int i = 0; i < n; ++i) p[i * stride] = from_real<S>(in[i * in_stride]);
  }
}

template <class S, class T>
bool is_flat(int64_t row, int64_t col, const Tile& t) {
  return std::is_same<S, T>::value && (col == 1 || t.cols == 1) && (t.rows == 1 || row == t.cols);
}

// The tile of an operand as tile.count() numbers in a row: where it lies, or gathered into `buffer`.
template <class S, class T>
const T* read(const Strided& m, const Tile& t, T* buffer) {
  const S* p = static_cast<const S*>(m.data) + t.row * m.row + t.col * m.col;
  if (is_flat<S, T>(m.row, m.col, t)) return reinterpret_cast<const T*>(p);
  if (t.cols < t.rows) {
    for (int j = 0; j < t.cols; ++j) gather(p + j * m.col, m.row, t.rows, buffer + j, t.cols);
  } else {
    for (int i = 0; i < t.rows; ++i) gather(p + i * m.row, m.col, t.cols, buffer + i * t.cols, 1);
  }
  return buffer;
}

// Where to write the tile of a result; `finish` brings it there if it went to the buffer.
template <class S, class T>
struct Writer {
  StridedOut m;
  Tile t;
  T* buffer;
  S* place;
  T* at;

  Writer(const StridedOut& out, const Tile& tile, T* spare) : m(out), t(tile), buffer(spare) {
    place = static_cast<S*>(m.data) + t.row * m.row + t.col * m.col;
    at = is_flat<S, T>(m.row, m.col, t) ? reinterpret_cast<T*>(place) : buffer;
  }
  void finish() const {
    if (at != buffer) return;
    if (t.cols < t.rows) {
      for (int j = 0; j < t.cols; ++j) scatter(buffer + j, t.cols, t.rows, place + j * m.col, m.row);
    } else {
      for (int i = 0; i < t.rows; ++i) scatter(buffer + i * t.cols, 1, t.cols, place + i * m.row, m.col);
    }
  }
};

template <class T>
using ForwardSpan = void (*)(int n, ScaleConstants<T>, const T* x, const T* shift, const T* raw, T* y, T* log_s);

template <ScaleMap kMap, bool kInverse, class T>
void forward_span(int n, ScaleConstants<T> k, const T* x, const T* shift, const T* raw, T* y, T* log_s) {
  using P = Native<T>;
  for (int i = 0; i < n; i += P::size) {
    const int m = n - i;
    const Scale<P> f = coupling_scale<kMap>(load_first<P>(raw + i, m), k);
    store_first(y + i, coupling_apply<kInverse>(load_first<P>(x + i, m), load_first<P>(shift + i, m), f.s), m);
    store_first(log_s + i, f.log_s, m);
  }
}

template <class T>
using BackwardSpan = void (*)(int n, ScaleConstants<T>, const T* g, const T* l, const T* x, const T* raw, T* gx,
                              T* gshift, T* graw);

template <ScaleMap kMap, bool kInverse, class T>
void backward_span(int n, ScaleConstants<T> k, const T* g, const T* l, const T* x, const T* raw, T* gx, T* gshift,
                   T* graw) {
  using P = Native<T>;
  for (int i = 0; i < n; i += P::size) {
    const int m = n - i;
    const Scale<P> f = coupling_scale<kMap>(load_first<P>(raw + i, m), k);
    const CouplingAdjoint<P> a =
        coupling_adjoint<kInverse>(load_first<P>(g + i, m), load_first<P>(l + i, m), load_first<P>(x + i, m), f);
    store_first(gx + i, a.x, m);
    if (gshift) store_first(gshift + i, a.shift, m);
    store_first(graw + i, a.raw, m);
  }
}

// f(integral_constant of the map, of the direction)
template <class F>
auto dispatch_map(ScaleMap map, bool inverse, F&& f) {
#define GF_MAP(name)                                                                                             \
  case ScaleMap::name:                                                                                           \
    return inverse ? f(std::integral_constant<ScaleMap, ScaleMap::name>{}, std::integral_constant<bool, true>{}) \
                   : f(std::integral_constant<ScaleMap, ScaleMap::name>{}, std::integral_constant<bool, false>{})
  switch (map) {
    GF_MAP(sigmoid);
    GF_MAP(softplus);
    GF_MAP(tanh);
    GF_MAP(atan);
    GF_MAP(softclip);
    GF_MAP(reciprocal_sigmoid);
    default:
      GF_MAP(exp);
  }
#undef GF_MAP
}

template <class T>
T span_sum(const T* p, int n) {
  using P = Native<T>;
  P acc(0);
  int i = 0;
  for (; i + P::size <= n; i += P::size) acc += load<P>(p + i);
  T total = sum(acc);
  for (; i < n; ++i) total += p[i];
  return total;
}

template <class S>
void run_forward(const CouplingForward& a) {
  using T = compute_t<S>;
  const auto k = ScaleConstants<T>::from(a.spec);
  const ForwardSpan<T> span = dispatch_map(a.spec.map, a.inverse, [](auto map, auto inverse) -> ForwardSpan<T> {
    return &forward_span<decltype(map)::value, decltype(inverse)::value, T>;
  });
  T* log_det = static_cast<T*>(a.log_det);
  if (a.d == 0) {
    for (int64_t i = 0; i < a.n; ++i) log_det[i] = 0;
    return;
  }
  parallel_for(a.n, (kGrain + a.d - 1) / a.d, [&](int64_t begin, int64_t end) {
    alignas(64) T x[kTile], shift[kTile], raw[kTile], y[kTile], log_s[kTile];
    for_tiles(begin, end, a.d, [&](const Tile& t) {
      const Writer<S, T> out({a.y, a.d, 1}, t, y);
      span(t.count(), k, read<S>(a.x, t, x), read<S>(a.shift, t, shift), read<S>(a.scale, t, raw), out.at, log_s);
      out.finish();
      for (int i = 0; i < t.rows; ++i) {
        const T s = span_sum(log_s + i * t.cols, t.cols);
        T& r = log_det[t.row + i];
        r = (t.col ? r : T(0)) + (a.inverse ? -s : s);
      }
    });
  });
}

template <class S>
void run_backward(const CouplingBackward& a) {
  using T = compute_t<S>;
  const auto k = ScaleConstants<T>::from(a.spec);
  const BackwardSpan<T> span = dispatch_map(a.spec.map, a.inverse, [](auto map, auto inverse) -> BackwardSpan<T> {
    return &backward_span<decltype(map)::value, decltype(inverse)::value, T>;
  });
  const T* grad_log_det = static_cast<const T*>(a.grad_log_det.data);
  if (a.d == 0) return;
  parallel_for(a.n, (kGrain + a.d - 1) / a.d, [&](int64_t begin, int64_t end) {
    alignas(64) T g[kTile], l[kTile], x[kTile], raw[kTile], gx[kTile], gshift[kTile], graw[kTile];
    for_tiles(begin, end, a.d, [&](const Tile& t) {
      for (int i = 0; i < t.rows; ++i) {
        const T row = grad_log_det[(t.row + i) * a.grad_log_det.row];
        for (int j = 0; j < t.cols; ++j) l[i * t.cols + j] = row;
      }
      const Writer<S, T> out_x({a.grad_x, a.d, 1}, t, gx), out_raw(a.grad_scale, t, graw);
      const T* grad_y = read<S>(a.grad_y, t, g);
      const T* kept = read<S>(a.kept, t, x);
      const T* raw_scale = read<S>(a.scale, t, raw);
      if (a.grad_shift.data) {
        const Writer<S, T> out_shift(a.grad_shift, t, gshift);
        span(t.count(), k, grad_y, l, kept, raw_scale, out_x.at, out_shift.at, out_raw.at);
        out_shift.finish();
      } else {
        span(t.count(), k, grad_y, l, kept, raw_scale, out_x.at, nullptr, out_raw.at);
      }
      out_x.finish();
      out_raw.finish();
    });
  });
}

}  // namespace

void coupling_forward(const CouplingForward& a) {
  dispatch_float(a.dtype, [&](auto tag) { run_forward<typename decltype(tag)::type>(a); });
}

void coupling_backward(const CouplingBackward& a) {
  dispatch_float(a.dtype, [&](auto tag) { run_backward<typename decltype(tag)::type>(a); });
}

}  // namespace GF_BACKEND
}  // namespace gf
