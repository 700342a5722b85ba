// Planar flow on the CPU. All K layers run over a block of rows as columns (columns.h). The update of z by one layer
// and the dot product of the next share a pass, so each number is loaded and stored once a layer.
#include <type_traits>

#include "common/chunk_sums.h"
#include "common/columns.h"
#include "common/rows.h"
#include "ops/planar/planar.h"
#include "ops/planar/planar_math.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

// Weights in the compute type, biases, and w.u of every layer.
template <class T>
struct Layers {
  Scratch<T> memory;
  T *w, *u, *wu, *b;

  // Of the arguments of either direction.
  template <class F>
  explicit Layers(const F& f)
      : memory(planar_sums(f.size)),
        w(memory.get()),
        u(w + f.size.k * f.size.d),
        wu(u + f.size.k * f.size.d),
        b(wu + f.size.k) {
    const PlanarSizes& s = f.size;
    gather(f.w, f.dtype, s.k * s.d, w);
    gather(f.u, f.dtype, s.k * s.d, u);
    gather(f.b, f.dtype, s.k, b);
    for (int64_t k = 0; k < s.k; ++k) {
      T dot = 0, magnitude = 0;
      for (int64_t d = 0; d < s.d; ++d) {
        const T product = w[k * s.d + d] * u[k * s.d + d];
        dot += product;
        magnitude += abs(product);
      }
      wu[k] = f.inverse ? planar_invertible_wu(dot, magnitude, storage_epsilon<T>(f.dtype)) : dot;
    }
  }
};

// Runs all layers over a block. `step(k, dot, h)` gets w.z of layer k and says how far it moves along u.
template <class P, class B, class T, class F>
GF_HD void run_layers(B& z, const T* w, const T* u, int64_t dim, int64_t depth, bool inverse, F&& step) {
  if (depth == 0) return;
  const int64_t first = inverse ? depth - 1 : 0, direction = inverse ? -1 : 1;
  P dot[kPacks], h[kPacks];
  for (int p = 0; p < kPacks; ++p) dot[p] = P(0);
  for (int64_t d = 0; d < dim; ++d)
    for (int p = 0; p < kPacks; ++p) dot[p] = fma(P(w[first * dim + d]), z.at(d, p), dot[p]);

  for (int64_t i = 0, k = first; i < depth; ++i, k += direction) {
    step(k, dot, h);
    for (int p = 0; p < kPacks; ++p) dot[p] = P(0);
    const T* u_here = u + k * dim;
    const T* w_next = w + (i + 1 < depth ? k + direction : k) * dim;  // after the last layer the product is not used
    for (int64_t d = 0; d < dim; ++d) {
      const P ud(u_here[d]), wd(w_next[d]);
      for (int p = 0; p < kPacks; ++p) {
        const P value = fma(ud, h[p], z.at(d, p));
        z.at(d, p) = value;
        dot[p] = fma(wd, value, dot[p]);
      }
    }
  }
}

template <class T, int kDim>
void forward_rows(const PlanarForward& f, const Layers<T>& layers, int64_t begin, int64_t end) {
  using P = Native<T>;
  constexpr int64_t rows = kPacks * P::size;
  const int64_t dim = kDim ? kDim : f.size.d, n = f.size.n;
  Scratch<P> memory(kDim ? 0 : dim * kPacks);
  Reader<T> input(f.input, f.dtype, rows * dim);
  Writer<T> output(f.output, f.dtype, rows * dim);
  T* log_det = static_cast<T*>(f.log_det);
  T* a_out = static_cast<T*>(f.a);

  for (int64_t row = begin; row < end; row += rows) {
    const int count = static_cast<int>(end - row < rows ? end - row : rows);
    Block<P, kDim> z(memory.get());
    load_block<P>(z, input.at(row * dim, count * dim), dim, count);
    P sum_log[kPacks];
    for (int p = 0; p < kPacks; ++p) sum_log[p] = P(0);
    run_layers<P>(z, layers.w, layers.u, dim, f.size.k, f.inverse, [&](int64_t k, const P* dot, P* h) {
      const P wu(layers.wu[k]);
      for (int p = 0; p < kPacks; ++p) {
        P a = dot[p] + P(layers.b[k]);
        if (f.inverse) a = planar_solve(a, wu);
        const PlanarLayer<P> layer = planar_layer(a, wu);
        h[p] = f.inverse ? -layer.h : layer.h;
        sum_log[p] += log(abs(layer.q));
        if (a_out) store_first(a_out + k * n + row + p * P::size, a, count - p * P::size);
      }
    });
    store_block<P>(z, output.at(row * dim), dim, count);
    output.finish(row * dim, count * dim);
    for (int p = 0; p < kPacks; ++p)
      store_first(log_det + row + p * P::size, f.inverse ? -sum_log[p] : sum_log[p], count - p * P::size);
  }
}

// Where a block of the backward reads, writes and keeps its columns.
template <class T>
struct BackwardBlock {
  int64_t row;
  int count;
  const T* known;  // rows of the output, or of the input where `a` was not kept
  const T* grad_output;
  T* grad_input;
  Native<T>*columns, *a;
};

// Gradients of a block of rows; sums over its rows go to `part` = grad_w [k, d], grad_u [k, d], grad_b [k], c [k]. A
// function of its own, so that its registers need not survive a call.
template <class T, int kDim, bool kInverse>
GF_NOINLINE void backward_block(const PlanarBackward& f, const Layers<T>& layers, const BackwardBlock<T>& block,
                                T* GF_RESTRICT part) {
  using P = Native<T>;
  const int64_t dim = kDim ? kDim : f.size.d, depth = f.size.k, n = f.size.n, row = block.row;
  const int count = block.count;
  const T* grad_log_det = static_cast<const T*>(f.grad_log_det);
  const T* a_in = static_cast<const T*>(f.a);
  P* a_block = block.a;
  T* part_w = part;
  T* part_u = part + depth * dim;
  T* part_b = part + 2 * depth * dim;
  T* part_c = part_b + depth;
  // The layers in the opposite order of the forward; z is rebuilt from the output on the way.
  const int64_t first = kInverse ? 0 : depth - 1, step = kInverse ? 1 : -1;

  Block<P, kDim> z(block.columns), g(block.columns + (kDim ? 0 : dim * kPacks));
  load_block<P>(z, block.known, dim, count);
  if (!f.a) {
    run_layers<P>(z, layers.w, layers.u, dim, depth, false, [&](int64_t k, const P* dot, P* h) {
      for (int p = 0; p < kPacks; ++p) {
        const P a = dot[p] + P(layers.b[k]);
        a_block[k * kPacks + p] = a;
        h[p] = planar_layer(a, P(0)).h;
      }
    });
  }
  load_block<P>(g, block.grad_output, dim, count);
  P l[kPacks], ug[kPacks];
  for (int p = 0; p < kPacks; ++p) {
    l[p] = load_first<P>(grad_log_det + row + p * P::size, count - p * P::size);
    ug[p] = P(0);
  }
  if (depth > 0)
    for (int64_t d = 0; d < dim; ++d)
      for (int p = 0; p < kPacks; ++p) ug[p] = fma(P(layers.u[first * dim + d]), g.at(d, p), ug[p]);

  for (int64_t i = 0, k = first; i < depth; ++i, k += step) {
    const P wu(layers.wu[k]);
    P h[kPacks], t[kPacks], sum_t(0), sum_c(0);
    for (int p = 0; p < kPacks; ++p) {
      // Rows that do not exist get a saturated layer: there q = 1, and their zero cotangents stay zero.
      const int lanes = count - p * P::size;
      const P a = f.a ? load_first<P>(a_in + k * n + row + p * P::size, lanes, T(40))
                      : keep_first(a_block[k * kPacks + p], lanes, T(40));
      const PlanarLayer<P> layer = planar_layer(a, wu);
      const PlanarAdjoint<P> adjoint = planar_adjoint<kInverse>(layer, wu, ug[p], l[p]);
      h[p] = layer.h;
      t[p] = adjoint.t;
      sum_t += t[p];
      sum_c += adjoint.c;
      ug[p] = P(0);
    }
    part_b[k] += sum(sum_t);
    part_c[k] += kInverse ? -sum(sum_c) : sum(sum_c);

    const T* w = layers.w + k * dim;
    const T* u = layers.u + k * dim;
    const T* u_next = i + 1 < depth ? layers.u + (k + step) * dim : u;
    for (int64_t d = 0; d < dim; ++d) {
      const P wd(w[d]), ud(u[d]), un(u_next[d]);
      P sum_w(0), sum_u(0);
      for (int p = 0; p < kPacks; ++p) {
        const P before = z.at(d, p), old = g.at(d, p);
        const P now = kInverse ? fma(ud, h[p], before) : before - ud * h[p];
        const P grad = fma(t[p], wd, old);
        // w.z of the layer is taken at its input: `now` going down the stack, `before` going up.
        sum_w = fma(t[p], kInverse ? before : now, sum_w);
        sum_u = fma(h[p], kInverse ? -grad : old, sum_u);
        ug[p] = fma(un, grad, ug[p]);
        z.at(d, p) = now;
        g.at(d, p) = grad;
      }
      part_w[k * dim + d] += sum(sum_w);
      part_u[k * dim + d] += sum(sum_u);
    }
  }
  store_block<P>(g, block.grad_input, dim, count);
}

// The same of a chunk of rows.
template <class T, int kDim, bool kInverse>
void backward_rows(const PlanarBackward& f, const Layers<T>& layers, int64_t begin, int64_t end, T* part) {
  using P = Native<T>;
  constexpr int64_t rows = kPacks * P::size;
  const int64_t dim = f.size.d;
  Scratch<P> columns(kDim ? 0 : 2 * dim * kPacks), a(f.a ? 0 : f.size.k * kPacks);
  Reader<T> known(f.a ? f.output : f.input, f.dtype, rows * dim), grad_output(f.grad_output, f.dtype, rows * dim);
  Writer<T> grad_input(f.grad_input, f.dtype, rows * dim);
  for (int64_t row = begin; row < end; row += rows) {
    const int64_t count = end - row < rows ? end - row : rows;
    backward_block<T, kDim, kInverse>(
        f, layers,
        {row, static_cast<int>(count), known.at(row * dim, count * dim), grad_output.at(row * dim, count * dim),
         grad_input.at(row * dim), columns.get(), a.get()},
        part);
    grad_input.finish(row * dim, count * dim);
  }
}

// grad_w = sum_chunks part_w + u sum c, grad_u = sum_chunks part_u + w sum c, in the order of the chunks.
template <class T>
void reduce_parameters(const PlanarBackward& f, const Layers<T>& layers) {
  const int64_t dim = f.size.d, depth = f.size.k, width = planar_sums(f.size);
  Scratch<T> memory(width);
  T* grad_w = memory.get();
  T* grad_u = grad_w + depth * dim;
  const T* grad_b = grad_u + depth * dim;
  const T* c = grad_b + depth;
  add_chunks(f.size.n, width, f.workspace, grad_w);
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t i = k * dim; i < (k + 1) * dim; ++i) {
      grad_w[i] += c[k] * layers.u[i];
      grad_u[i] += c[k] * layers.w[i];
    }
  }
  scatter(grad_w, depth * dim, f.grad_w, f.dtype);
  scatter(grad_u, depth * dim, f.grad_u, f.dtype);
  scatter(grad_b, depth, f.grad_b, f.dtype);
}

// f(integral_constant): D where that pays, else 0.
template <class T, class F>
void dispatch_dim(int64_t d, F&& f) {
  if constexpr (std::is_same<T, float>::value)
    if (d == 2) return f(std::integral_constant<int, 2>{});
  f(std::integral_constant<int, 0>{});
}

}  // namespace

void planar_forward(const PlanarForward& f) {
  dispatch_real(f.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Layers<T> layers(f);
    dispatch_dim<T>(f.size.d, [&](auto dim) {
      parallel_for(f.size.n, kChunkRows,
                   [&](int64_t begin, int64_t end) { forward_rows<T, decltype(dim)::value>(f, layers, begin, end); });
    });
  });
}

void planar_backward(const PlanarBackward& f) {
  dispatch_real(f.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Layers<T> layers(f);
    dispatch_dim<T>(f.size.d, [&](auto dim) {
      constexpr int kDim = decltype(dim)::value;
      for_chunks<T>(f.size.n, planar_sums(f.size), f.workspace, [&](int64_t begin, int64_t end, T* part) {
        f.inverse ? backward_rows<T, kDim, true>(f, layers, begin, end, part)
                  : backward_rows<T, kDim, false>(f, layers, begin, end, part);
      });
    });
    reduce_parameters(f, layers);
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
