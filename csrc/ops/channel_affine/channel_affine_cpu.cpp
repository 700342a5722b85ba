// Affine maps of channels on the CPU. A block of pixels is brought into a buffer [channel][pixel] that stays in L1, its
// lanes are pixels, and it runs through all parts of the map there.
#include "common/columns.h"
#include "common/parallel.h"
#include "common/rows.h"
#include "ops/channel_affine/channel_affine_math.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

// Rows of a triangle that go together: as many as leave registers for their sums.
constexpr int kRows = kVectorBytes == 64 ? 4 : 2;

// Entry (i, j) of a matrix whose rows are read kChannelGroup at a time.
template <class T>
struct Grouped {
  T* m;
  int64_t padded;
  GF_HD T& operator()(int64_t i, int64_t j) const {
    return m[(i / kChannelGroup * padded + j) * kChannelGroup + i % kChannelGroup];
  }
};

// The parameters in the type they are computed in.
template <class T>
class Parameters {
 public:
  const ChannelMap f;
  const int64_t c, padded;
  const bool lu, scaled;
  T *diag, *undiag, *scale, *unscale, *shift, *log_scale;  // null where there is none
  T *zeros, *bias;
  static constexpr const T* none = nullptr;  // a diagonal of ones
  Diagonal<T>* diagonal;
  T log_det = 0;  // of a pixel, of the forward

  explicit Parameters(const ChannelMap& map)
      : f(map),
        c(map.c),
        padded(padded_channels(map.c)),
        lu(map.lower != nullptr),
        scaled(map.log_scale != nullptr),
        vectors_(9 * padded),
        diagonals_(padded),
        matrices_(lu ? 2 * c * c : 0),
        grouped_(lu ? 2 * padded * padded : 0),
        numbers_(matrices_.get()) {
    T* next = vectors_.get();
    zeros = next;
    for (int64_t i = 0; i < padded; ++i) *next++ = 0;
    const auto vector = [&](const void* p) -> T* {
      if (p == nullptr) return nullptr;
      T* to = next;
      next += padded;
      gather(p, f.dtype, c, to);
      for (int64_t i = c; i < padded; ++i) to[i] = 0;
      return to;
    };
    shift = vector(f.shift);
    bias = f.bias != nullptr ? vector(f.bias) : zeros;
    log_scale = vector(f.log_scale);
    diag = vector(f.diag);
    const T* sign = vector(f.sign);
    scale = unscale = undiag = nullptr;
    if (scaled) {
      scale = next, unscale = next + padded;
      for (int64_t i = 0; i < padded; ++i) {
        scale[i] = exp(saturated(log_scale[i])), unscale[i] = exp(-saturated(log_scale[i]));
        log_det += saturated(log_scale[i]);
      }
    }
    diagonal = diagonals_.get();
    if (lu) {
      undiag = sign != nullptr ? const_cast<T*>(sign) : next + 2 * padded;
      for (int64_t i = 0; i < c; ++i) {
        diagonal[i] = channel_diagonal(f, diag[i], sign != nullptr ? sign[i] : T(1));
        diag[i] = diagonal[i].d, undiag[i] = T(1) / diagonal[i].d;
        log_det += diagonal[i].log_abs;
      }
      for (int64_t i = c; i < padded; ++i) diag[i] = undiag[i] = 1;
      gather(f.lower, f.dtype, c * c, numbers_);
      gather(f.upper, f.dtype, c * c, numbers_ + c * c);
    }
  }
  T lower(int64_t i, int64_t j) const { return numbers_[i * c + j]; }
  T upper(int64_t i, int64_t j) const { return numbers_[c * c + i * c + j]; }

  // Both triangles without their diagonals in one matrix, and its transpose.
  Grouped<T> weights() { return group(grouped_.get(), false); }
  Grouped<T> transposed() { return group(grouped_.get() + padded * padded, true); }

 private:
  Grouped<T> group(T* to, bool transpose) {
    const Grouped<T> m{to, padded};
    for (int64_t i = 0; lu && i < padded; ++i)
      for (int64_t j = 0; j < padded; ++j) {
        const bool inside = i < c && j < c && i != j;
        const int64_t row = transpose ? j : i, col = transpose ? i : j;
        m(i, j) = !inside ? T(0) : row > col ? lower(row, col) : upper(row, col);
      }
    return m;
  }

  Scratch<T> vectors_;
  Scratch<Diagonal<T>> diagonals_;
  Scratch<T> matrices_, grouped_;
  T* numbers_;
};

// Blocks of pixels, first ... first + count - 1, of a tensor. Lanes beyond `count` are zeros.
template <class T>
class Pixels {
 public:
  using R = Packs<Native<T>>;
  static constexpr int64_t most = kPacks * Native<T>::size;

  explicit Pixels(const ChannelMap& f) : f_(f), line_(most * f.c) {}

  void load(const void* p, int64_t first, int64_t count, R* to) {
    T* out = &numbers(to)[0];
    if (count < most)
      for (int64_t i = 0; i < f_.c * most; ++i) out[i] = 0;
    segments(first, count, [&](int64_t at, int64_t done, int64_t length, const Layout& layout) {
      const void* from = element(p, f_.dtype, at);
      if (length == most) return gather(from, f_.dtype, layout, out);
      gather(from, f_.dtype, layout, line_.get());
      for (int64_t i = 0; i < f_.c; ++i)
        for (int64_t j = 0; j < length; ++j) out[i * most + done + j] = line_.get()[i * length + j];
    });
  }
  void store(R* from, int64_t first, int64_t count, void* p) {
    const T* in = &numbers(from)[0];
    segments(first, count, [&](int64_t at, int64_t done, int64_t length, const Layout& layout) {
      void* to = element(p, f_.dtype, at);
      if (length == most) return scatter(in, to, f_.dtype, layout);
      for (int64_t i = 0; i < f_.c; ++i)
        for (int64_t j = 0; j < length; ++j) line_.get()[i * length + j] = in[i * most + done + j];
      scatter(line_.get(), to, f_.dtype, layout);
    });
  }

 private:
  static T* numbers(R* block) { return reinterpret_cast<T*>(block); }

  // f(where it begins, pixels of the block before it, its length, layout) for each run of pixels with even strides.
  template <class F>
  void segments(int64_t first, int64_t count, F&& f) {
    const int64_t image = f_.image(), c = f_.c;
    if (f_.channels_last) return f(first * c, 0, count, Layout{c, count, 1, c});
    for (int64_t done = 0; done < count;) {
      const int64_t n = (first + done) / image, at = (first + done) % image;
      const int64_t length = image - at < count - done ? image - at : count - done;
      f(n * c * image + at, done, length, Layout{c, length, image, 1});
      done += length;
    }
  }

  const ChannelMap f_;
  Scratch<T> line_;
};

template <class R>
void set_zero(R* block, int64_t count) {
  for (int64_t i = 0; i < count; ++i) block[i] = R(0);
}

// Channels past the last one are zeros; a NaN of the block before would stay in its lane.
template <class T, class R>
void clear_pads(const Parameters<T>& p, R* block) {
  set_zero(block + p.c, p.padded - p.c);
}

// w_p(i) = y_i - b_i.
template <class T, class R>
void unpermute(const Parameters<T>& p, const R* y, const T* bias, R* w) {
  for (int64_t i = 0; i < p.c; ++i) w[p.f.permutation != nullptr ? p.f.permutation[i] : i] = y[i] - R(bias[i]);
}
// y_i = w_p(i) + b_i.
template <class T, class R>
void permute(const Parameters<T>& p, const R* w, const T* bias, R* y) {
  for (int64_t i = 0; i < p.c; ++i) y[i] = w[p.f.permutation != nullptr ? p.f.permutation[i] : i] + R(bias[i]);
}

template <class T>
void run_forward(const ChannelForward& a) {
  using R = typename Pixels<T>::R;
  Parameters<T> p(a.map);
  const T pixels = static_cast<T>(a.map.image()), log_det = a.map.inverse ? -pixels * p.log_det : pixels * p.log_det;
  for (int64_t i = 0; i < a.map.n; ++i) static_cast<T*>(a.log_det)[i] = pixels == T(0) ? T(0) : log_det;
  const Grouped<T> m = p.weights();
  constexpr int64_t most = Pixels<T>::most;
  parallel_for(a.map.pixels(), 4 * most, [&](int64_t begin, int64_t end) {
    Pixels<T> tensor(a.map);
    Scratch<R> one(p.padded), two(p.padded);
    set_zero(one.get(), p.padded), set_zero(two.get(), p.padded);
    R *x = one.get(), *y = two.get();
    const auto in = [&](int64_t i) -> R& { return x[i]; };
    const auto out = [&](int64_t i) -> R& { return y[i]; };
    for (int64_t first = begin; first < end; first += most) {
      const int64_t count = end - first < most ? end - first : most;
      tensor.load(a.input, first, count, x);
      if (a.map.inverse) {
        unpermute(p, x, p.bias, y);
        if (p.lu) {
          clear_pads(p, y);
          triangle<false, true, kRows, R>(p.padded, m, p.none, out);
          triangle<true, true, kRows, R>(p.padded, m, p.undiag, out);
        }
        if (p.scaled)
          for (int64_t i = 0; i < p.c; ++i) y[i] = (y[i] - R(p.shift[i])) * R(p.unscale[i]);
      } else {
        if (p.scaled)
          for (int64_t i = 0; i < p.c; ++i) x[i] = fma(R(p.scale[i]), x[i], R(p.shift[i]));
        if (p.lu) {
          clear_pads(p, x);
          triangle<true, false, kRows, R>(p.padded, m, p.diag, in);
          triangle<false, false, kRows, R>(p.padded, m, p.none, in);
        }
        permute(p, x, p.bias, y);
      }
      tensor.store(y, first, count, a.output);
    }
  });
}

// Adds g z^T over the lanes to `sums`, tiles of kRows x kChannelGroup vectors of lanes; those with an entry below the
// diagonal, or above (kUpper).
template <bool kUpper, class P, class R>
void add_products(int64_t padded, const R* g, const R* z, P* sums) {
  for (int64_t i = 0; i < padded; i += kRows) {
    P* tile = sums + i * padded;
    for (int64_t j = 0; j < padded; j += kChannelGroup, tile += kRows * kChannelGroup) {
      if (kUpper ? j + kChannelGroup <= i : j >= i + kRows) continue;
      P s[kRows][kChannelGroup];
      for (int r = 0; r < kRows; ++r)
        for (int q = 0; q < kChannelGroup; ++q) s[r][q] = tile[r * kChannelGroup + q];
      for (int k = 0; k < kPacks; ++k)
        for (int r = 0; r < kRows; ++r)
          for (int q = 0; q < kChannelGroup; ++q) s[r][q] = fma(g[i + r].v[k], z[j + q].v[k], s[r][q]);
      for (int r = 0; r < kRows; ++r)
        for (int q = 0; q < kChannelGroup; ++q) tile[r * kChannelGroup + q] = s[r][q];
    }
  }
}

template <class P>
scalar_t<P> total_of(const Packs<P>& x) {
  P total(0);
  for (int k = 0; k < kPacks; ++k) total += x.v[k];
  return sum(total);
}

// The gradients of the parameters, from sums over pixels.
template <class T>
void finish(const ChannelBackward& a, const Parameters<T>& p, const T* totals) {
  const ChannelTotals<T> sums(a.map, totals);
  const int64_t c = p.c;
  const T sign = a.map.inverse ? T(-1) : T(1);
  Scratch<T> line(c);
  const auto put = [&](void* to, auto&& number) {
    if (to == nullptr) return;
    for (int64_t i = 0; i < c; ++i) line.get()[i] = number(i);
    scatter(line.get(), c, to, a.map.dtype);
  };
  put(a.grad_bias, [&](int64_t i) { return sign * sums.bias[i]; });
  put(a.grad_shift, [&](int64_t i) { return sign * sums.shift[i]; });
  put(a.grad_log_scale, [&](int64_t i) { return grad_of_log_scale(a.map, sums, i, p.log_scale[i]); });
  if (!p.lu) return;

  put(a.grad_diag, [&](int64_t i) { return grad_of_diagonal(a.map, sums, i, p.diagonal[i]); });
  for (int64_t i = 0; i < c; ++i) {
    const T* row = sums.weights + i * c;
    const auto part = [&](void* to, int64_t first, int64_t end) {
      if (to == nullptr) return;
      for (int64_t j = 0; j < c; ++j) line.get()[j] = j >= first && j < end ? sign * row[j] : T(0);
      scatter(line.get(), c, element(to, a.map.dtype, i * c), a.map.dtype);
    };
    part(a.grad_lower, 0, i);
    part(a.grad_upper, i + 1, c);
  }
}

template <class T>
void run_backward(const ChannelBackward& a) {
  using R = typename Pixels<T>::R;
  using P = Native<T>;
  Parameters<T> p(a.map);
  const Grouped<T> m = p.weights(), transposed = p.transposed();
  const int64_t c = p.c, padded = p.padded, image = a.map.image(), pixels = a.map.pixels();
  const int64_t length = pixels_per_chunk(pixels, false), chunks = pixel_chunks(pixels, false);
  const int64_t width = channel_sums(a.map), matrix = p.lu ? c * c : 0;
  constexpr int64_t most = Pixels<T>::most;
  T* workspace = static_cast<T*>(a.workspace);
  parallel_for(chunks, 1, [&](int64_t chunk, int64_t) {
    const int64_t begin = chunk * length, end = begin + length < pixels ? begin + length : pixels;
    T* part = workspace + chunk * width;
    for (int64_t i = 0; i < width; ++i) part[i] = 0;
    T *bias = part + matrix, *log_scale = bias + c, *shift = log_scale + c, *log_det = shift + c;
    if (image > 0)  // those of the images that begin in this chunk
      for (int64_t n = (begin + image - 1) / image; n * image < end; ++n)
        *log_det += static_cast<const T*>(a.grad_log_det)[n];

    Pixels<T> tensor(a.map);
    Scratch<R> blocks(5 * padded);
    set_zero(blocks.get(), 5 * padded);
    R *x = blocks.get(), *u = x + padded, *v = u + padded, *g = v + padded, *y = g + padded;
    const auto of_v = [&](int64_t i) -> R& { return v[i]; };
    const auto cotangent = [&](int64_t i) -> R& { return g[i]; };
    const int64_t square = p.lu ? padded * padded : 0;
    Scratch<P> products(2 * square);  // those below the diagonal, then those above
    for (int64_t i = 0; i < 2 * square; ++i) products.get()[i] = P(0);
    const auto add_diagonal = [&] {
      for (int64_t i = 0; i < c; ++i) part[i * c + i] += total_of(g[i] * (R(p.diag[i]) * u[i]));
    };
    for (int64_t first = begin; first < end; first += most) {
      const int64_t count = end - first < most ? end - first : most;
      tensor.load(a.kept, first, count, x);
      for (int64_t i = 0; i < c; ++i) {
        x[i] = R(p.scaled ? p.scale[i] : T(1)) * x[i];
        u[i] = x[i] + R(p.scaled ? p.shift[i] : T(0));
        v[i] = u[i] + R(0);
      }
      if (p.lu) {
        clear_pads(p, v), clear_pads(p, g);
        triangle<true, false, kRows, R>(padded, m, p.diag, of_v);
      }
      tensor.load(a.grad_output, first, count, y);
      if (a.map.inverse) {
        for (int64_t i = 0; i < c; ++i) g[i] = R(p.scaled ? p.unscale[i] : T(1)) * y[i];
      } else {
        for (int64_t i = 0; i < c; ++i) bias[i] += total_of(y[i]);
        unpermute(p, y, p.zeros, g);
        if (p.lu) {
          add_products<false>(padded, g, v, products.get());
          triangle<true, false, kRows, R>(padded, transposed, p.none, cotangent);
          add_products<true>(padded, g, u, products.get() + square);
          add_diagonal();
          triangle<false, false, kRows, R>(padded, transposed, p.diag, cotangent);
        }
      }
      if (p.scaled)
        for (int64_t i = 0; i < c; ++i) shift[i] += total_of(g[i]), log_scale[i] += total_of(g[i] * x[i]);
      if (a.map.inverse) {
        if (p.lu) {
          triangle<false, true, kRows, R>(padded, transposed, p.undiag, cotangent);
          add_products<true>(padded, g, u, products.get() + square);
          add_diagonal();
          triangle<true, true, kRows, R>(padded, transposed, p.none, cotangent);
          add_products<false>(padded, g, v, products.get());
        }
        permute(p, g, p.zeros, y);
        for (int64_t i = 0; i < c; ++i) bias[i] += total_of(y[i]);
      } else {
        for (int64_t i = 0; i < c; ++i) y[i] = R(p.scaled ? p.scale[i] : T(1)) * g[i];
      }
      tensor.store(y, first, count, a.grad_input);
    }
    if (p.lu)
      for (int64_t i = 0; i < c; ++i)
        for (int64_t j = 0; j < c; ++j)
          if (i != j)
            part[i * c + j] =
                sum(products.get()[(i > j ? 0 : square) + i / kRows * kRows * padded +
                                   (j / kChannelGroup * kRows + i % kRows) * kChannelGroup + j % kChannelGroup]);
  });
  Scratch<T> totals(width);
  for (int64_t i = 0; i < width; ++i) totals.get()[i] = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t i = 0; i < width; ++i) totals.get()[i] += workspace[chunk * width + i];
  finish(a, p, totals.get());
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
