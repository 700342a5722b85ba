// Affine coupling on the CPU. The elements are cut into flat tiles, of several whole rows or of a part of a wide one,
// so that lanes are full for D = 1 too. An operand that does not lie flat in memory, or is of a half type, is gathered
// into a buffer of the tile; the arithmetic sees plain arrays.
#include "common/parallel.h"
#include "common/rows.h"
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

// Whether the tile of an operand is tile.count() numbers of the compute type in a row.
inline bool is_flat(DType dtype, int64_t row, int64_t col, const Tile& t) {
  return !is_half(dtype) && (col == 1 || t.cols == 1) && (t.rows == 1 || row == t.cols);
}

// The tile of an operand as tile.count() numbers in a row: where it lies, or gathered into `buffer`.
template <class T>
const T* read(const Strided& m, DType dtype, const Tile& t, T* buffer) {
  const void* p = element(m.data, dtype, t.row * m.row + t.col * m.col);
  if (is_flat(dtype, m.row, m.col, t)) return static_cast<const T*>(p);
  gather(p, dtype, {t.rows, t.cols, m.row, m.col}, buffer);
  return buffer;
}

// Where to write the tile of a result; `finish` brings it to its place if that was the buffer.
template <class T>
T* place_of(const StridedOut& m, DType dtype, const Tile& t, T* buffer) {
  if (m.data == nullptr) return nullptr;
  if (!is_flat(dtype, m.row, m.col, t)) return buffer;
  return static_cast<T*>(element(m.data, dtype, t.row * m.row + t.col * m.col));
}

template <class T>
void finish(const StridedOut& m, DType dtype, const Tile& t, const T* written, const T* buffer) {
  if (written == buffer)
    scatter(buffer, element(m.data, dtype, t.row * m.row + t.col * m.col), dtype, {t.rows, t.cols, m.row, m.col});
}

// One function for both directions: which it is hardly shows beside the map.
template <class T>
using ForwardSpan = void (*)(int n, ScaleConstants<T>, bool inverse, const T* x, const T* shift, const T* raw, T* y,
                             T* log_s);

template <ScaleMap kMap, class T>
void forward_span(int n, ScaleConstants<T> k, bool inverse, const T* x, const T* shift, const T* raw, T* y, T* log_s) {
  using P = Native<T>;
  for (int i = 0; i < n; i += P::size) {
    const int m = n - i;
    const Scale<P> f = coupling_scale<kMap>(load_first<P>(raw + i, m), k);
    store_first(y + i, coupling_apply(inverse, load_first<P>(x + i, m), load_first<P>(shift + i, m), f.s), m);
    store_first(log_s + i, f.log_s, m);
  }
}

template <class T>
using BackwardSpan = void (*)(int n, ScaleConstants<T>, bool inverse, const T* g, const T* l, const T* x, const T* raw,
                              T* gx, T* gshift, T* graw);

template <ScaleMap kMap, class T>
void backward_span(int n, ScaleConstants<T> k, bool inverse, const T* g, const T* l, const T* x, const T* raw, T* gx,
                   T* gshift, T* graw) {
  using P = Native<T>;
  for (int i = 0; i < n; i += P::size) {
    const int m = n - i;
    const Scale<P> f = coupling_scale<kMap>(load_first<P>(raw + i, m), k);
    const CouplingAdjoint<P> a =
        coupling_adjoint(inverse, load_first<P>(g + i, m), load_first<P>(l + i, m), load_first<P>(x + i, m), f);
    store_first(gx + i, a.x, m);
    if (gshift) store_first(gshift + i, a.shift, m);
    store_first(graw + i, a.raw, m);
  }
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

template <class T>
void run_forward(const CouplingForward& a) {
  const auto k = ScaleConstants<T>::from(a.spec);
  const auto span =
      dispatch_scale_map(a.spec.map, [](auto map) -> ForwardSpan<T> { return &forward_span<decltype(map)::value, T>; });
  T* log_det = static_cast<T*>(a.log_det);
  if (a.d == 0) {
    for (int64_t i = 0; i < a.n; ++i) log_det[i] = 0;
    return;
  }
  const StridedOut y{a.y, a.d, 1};
  parallel_for(a.n, (kGrain + a.d - 1) / a.d, [&](int64_t begin, int64_t end) {
    alignas(64) T x_tile[kTile], shift_tile[kTile], scale_tile[kTile], y_tile[kTile], log_s[kTile];
    for_tiles(begin, end, a.d, [&](const Tile& t) {
      T* out = place_of(y, a.dtype, t, y_tile);
      span(t.count(), k, a.inverse, read(a.x, a.dtype, t, x_tile), read(a.shift, a.dtype, t, shift_tile),
           read(a.scale, a.dtype, t, scale_tile), out, log_s);
      finish(y, a.dtype, t, out, y_tile);
      for (int i = 0; i < t.rows; ++i) {
        const T s = span_sum(log_s + i * t.cols, t.cols);
        T& r = log_det[t.row + i];
        r = (t.col ? r : T(0)) + (a.inverse ? -s : s);
      }
    });
  });
}

template <class T>
void run_backward(const CouplingBackward& a) {
  const auto k = ScaleConstants<T>::from(a.spec);
  const auto span = dispatch_scale_map(
      a.spec.map, [](auto map) -> BackwardSpan<T> { return &backward_span<decltype(map)::value, T>; });
  const T* grad_log_det = static_cast<const T*>(a.grad_log_det.data);
  if (a.d == 0) return;
  const StridedOut grad_x{a.grad_x, a.d, 1};
  parallel_for(a.n, (kGrain + a.d - 1) / a.d, [&](int64_t begin, int64_t end) {
    alignas(64) T grad_y[kTile], l[kTile], kept[kTile], scale[kTile], x_tile[kTile], shift_tile[kTile],
        scale_tile[kTile];
    for_tiles(begin, end, a.d, [&](const Tile& t) {
      for (int i = 0; i < t.rows; ++i) {
        const T row = grad_log_det[(t.row + i) * a.grad_log_det.row];
        for (int j = 0; j < t.cols; ++j) l[i * t.cols + j] = row;
      }
      T* out_x = place_of(grad_x, a.dtype, t, x_tile);
      T* out_shift = place_of(a.grad_shift, a.dtype, t, shift_tile);
      T* out_scale = place_of(a.grad_scale, a.dtype, t, scale_tile);
      span(t.count(), k, a.inverse, read(a.grad_y, a.dtype, t, grad_y), l, read(a.kept, a.dtype, t, kept),
           read(a.scale, a.dtype, t, scale), out_x, out_shift, out_scale);
      finish(grad_x, a.dtype, t, out_x, x_tile);
      finish(a.grad_shift, a.dtype, t, out_shift, shift_tile);
      finish(a.grad_scale, a.dtype, t, out_scale, scale_tile);
    });
  });
}

}  // namespace

void coupling_forward(const CouplingForward& a) {
  dispatch_real(a.dtype, [&](auto tag) { run_forward<typename decltype(tag)::type>(a); });
}

void coupling_backward(const CouplingBackward& a) {
  dispatch_real(a.dtype, [&](auto tag) { run_backward<typename decltype(tag)::type>(a); });
}

}  // namespace GF_BACKEND
}  // namespace gf
