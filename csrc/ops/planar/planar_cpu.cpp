// Planar flow on the CPU. Lanes are rows: a block of kPacks registers' worth of rows is transposed into a buffer
// z[d][pack] that stays in L1 (in registers for the smallest D), and all K layers run over it. The update of z by one
// layer and the dot product of the next share a pass, so each number is loaded and stored once a layer.
#include <type_traits>

#include "common/chunks.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "ops/planar/planar.h"
#include "ops/planar/planar_math.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

// Independent chains of multiply-adds: enough to hide their latency, few enough for the registers.
constexpr int kPacks = kVectorBytes == 16 ? 2 : 4;

// Weights in the compute type, biases, and w.u of every layer.
template <class S, class T = compute_t<S>>
struct Layers {
  Scratch<T> memory;
  T *w, *u, *wu, *b;

  Layers(const PlanarSizes& s, const void* w_in, const void* u_in, const void* b_in, bool inverse)
      : memory(2 * s.k * s.d + 2 * s.k), w(memory.get()), u(w + s.k * s.d), wu(u + s.k * s.d), b(wu + s.k) {
    const S* GF_RESTRICT ws = static_cast<const S*>(w_in);
    const S* GF_RESTRICT us = static_cast<const S*>(u_in);
    for (int64_t i = 0; i < s.k * s.d; ++i) w[i] = to_real(ws[i]);
    for (int64_t i = 0; i < s.k * s.d; ++i) u[i] = to_real(us[i]);
    for (int64_t k = 0; k < s.k; ++k) {
      b[k] = to_real(static_cast<const S*>(b_in)[k]);
      T dot = 0, magnitude = 0;
      for (int64_t d = 0; d < s.d; ++d) {
        const T product = w[k * s.d + d] * u[k * s.d + d];
        dot += product;
        magnitude += abs(product);
      }
      wu[k] = inverse ? planar_invertible_wu(dot, magnitude, static_cast<T>(storage_epsilon<S>())) : dot;
    }
  }
};

// A block of rows as columns: at(d, p) is the p-th pack of rows of component d. kDim > 0 fixes D at compile time, and
// the optimiser keeps the whole block in registers.
template <class P, int kDim>
struct Block {
  P values[kDim][kPacks];
  explicit Block(P*) {}
  GF_HD P& at(int64_t d, int p) { return values[d][p]; }
};
template <class P>
struct Block<P, 0> {
  P* values;
  explicit Block(P* memory) : values(memory) {}
  GF_HD P& at(int64_t d, int p) { return values[d * kPacks + p]; }
};

template <class P, class B, class S>
GF_HD void load_block(B& block, const S* rows, int64_t dim, int count) {
  for (int64_t d = 0; d < dim; ++d)
    for (int p = 0; p < kPacks; ++p)
      block.at(d, p) = load_strided<P>(rows + (p * P::size) * dim + d, dim, count - p * P::size);
}

template <class P, class B, class S>
GF_HD void store_block(B& block, S* rows, int64_t dim, int count) {
  for (int64_t d = 0; d < dim; ++d)
    for (int p = 0; p < kPacks; ++p)
      store_strided(rows + (p * P::size) * dim + d, dim, block.at(d, p), count - p * P::size);
}

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

template <class S, int kDim>
void forward_rows(const PlanarForward& f, const Layers<S>& layers, int64_t begin, int64_t end) {
  using T = compute_t<S>;
  using P = Native<T>;
  constexpr int64_t rows = kPacks * P::size;
  const int64_t dim = kDim ? kDim : f.size.d, n = f.size.n;
  Scratch<P> memory(kDim ? 0 : dim * kPacks);
  const S* input = static_cast<const S*>(f.input);
  S* output = static_cast<S*>(f.output);
  T* log_det = static_cast<T*>(f.log_det);
  T* a_out = static_cast<T*>(f.a);

  for (int64_t row = begin; row < end; row += rows) {
    const int count = static_cast<int>(end - row < rows ? end - row : rows);
    Block<P, kDim> z(memory.get());
    load_block<P>(z, input + row * dim, dim, count);
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
    store_block<P>(z, output + row * dim, dim, count);
    for (int p = 0; p < kPacks; ++p)
      store_first(log_det + row + p * P::size, f.inverse ? -sum_log[p] : sum_log[p], count - p * P::size);
  }
}

// Gradients of one chunk of rows; sums over its rows go to `part` = grad_w [k, d], grad_u [k, d], grad_b [k], c [k].
template <class S, int kDim, bool kInverse>
void backward_rows(const PlanarBackward& f, const Layers<S>& layers, int64_t begin, int64_t end,
                   compute_t<S>* GF_RESTRICT part) {
  using T = compute_t<S>;
  using P = Native<T>;
  constexpr int64_t rows = kPacks * P::size;
  const int64_t dim = kDim ? kDim : f.size.d, depth = f.size.k, n = f.size.n;
  Scratch<P> memory(kDim ? 0 : 2 * dim * kPacks), a_memory(f.a ? 0 : depth * kPacks);
  P* a_block = a_memory.get();
  const S* output = static_cast<const S*>(f.output);
  const S* grad_output = static_cast<const S*>(f.grad_output);
  const T* grad_log_det = static_cast<const T*>(f.grad_log_det);
  S* grad_input = static_cast<S*>(f.grad_input);
  const T* a_in = static_cast<const T*>(f.a);
  T* part_w = part;
  T* part_u = part + depth * dim;
  T* part_b = part + 2 * depth * dim;
  T* part_c = part_b + depth;
  for (int64_t i = 0; i < 2 * depth * dim + 2 * depth; ++i) part[i] = 0;
  // The layers in the opposite order of the forward; z is rebuilt from the output on the way.
  const int64_t first = kInverse ? 0 : depth - 1, step = kInverse ? 1 : -1;

  for (int64_t row = begin; row < end; row += rows) {
    const int count = static_cast<int>(end - row < rows ? end - row : rows);
    Block<P, kDim> z(memory.get()), g(memory.get() + (kDim ? 0 : dim * kPacks));
    if (f.a) {
      load_block<P>(z, output + row * dim, dim, count);
    } else {
      load_block<P>(z, static_cast<const S*>(f.input) + row * dim, dim, count);
      run_layers<P>(z, layers.w, layers.u, dim, depth, false, [&](int64_t k, const P* dot, P* h) {
        for (int p = 0; p < kPacks; ++p) {
          const P a = dot[p] + P(layers.b[k]);
          a_block[k * kPacks + p] = a;
          h[p] = planar_layer(a, P(0)).h;
        }
      });
    }
    load_block<P>(g, grad_output + row * dim, dim, count);
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
    store_block<P>(g, grad_input + row * dim, dim, count);
  }
}

// grad_w = sum_chunks part_w + u sum c, grad_u = sum_chunks part_u + w sum c, in the order of the chunks.
template <class S>
void reduce_parameters(const PlanarBackward& f, const Layers<S>& layers, int64_t chunks) {
  using T = compute_t<S>;
  const int64_t dim = f.size.d, depth = f.size.k, stride = 2 * depth * dim + 2 * depth;
  const T* parts = static_cast<const T*>(f.workspace);
  Scratch<T> memory(stride);
  T* GF_RESTRICT total = memory.get();
  parallel_for(stride, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) total[i] = 0;
    for (int64_t c = 0; c < chunks; ++c) {
      const T* GF_RESTRICT part = parts + c * stride;
      for (int64_t i = begin; i < end; ++i) total[i] += part[i];
    }
  });
  const T* b = total + 2 * depth * dim;
  const T* c = b + depth;
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t d = 0; d < dim; ++d) {
      const int64_t i = k * dim + d;
      static_cast<S*>(f.grad_w)[i] = from_real<S>(total[i] + c[k] * layers.u[i]);
      static_cast<S*>(f.grad_u)[i] = from_real<S>(total[depth * dim + i] + c[k] * layers.w[i]);
    }
    static_cast<S*>(f.grad_b)[k] = from_real<S>(b[k]);
  }
}

template <class F>
void dispatch_dim(int64_t d, F&& f) {
  switch (d) {
    case 1:
      return f(std::integral_constant<int, 1>{});
    case 2:
      return f(std::integral_constant<int, 2>{});
    default:
      return f(std::integral_constant<int, 0>{});
  }
}

}  // namespace

void planar_forward(const PlanarForward& f) {
  dispatch_float(f.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    const Layers<S> layers(f.size, f.w, f.u, f.b, f.inverse);
    dispatch_dim(f.size.d, [&](auto dim) {
      parallel_for(f.size.n, kChunkRows,
                   [&](int64_t begin, int64_t end) { forward_rows<S, decltype(dim)::value>(f, layers, begin, end); });
    });
  });
}

void planar_backward(const PlanarBackward& f) {
  dispatch_float(f.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = compute_t<S>;
    const Layers<S> layers(f.size, f.w, f.u, f.b, f.inverse);
    const int64_t chunk = rows_per_chunk(f.size.n), chunks = row_chunks(f.size.n);
    const int64_t stride = 2 * f.size.k * f.size.d + 2 * f.size.k;
    dispatch_dim(f.size.d, [&](auto dim) {
      parallel_for(chunks, 1, [&](int64_t c, int64_t) {
        const int64_t begin = c * chunk, end = begin + chunk < f.size.n ? begin + chunk : f.size.n;
        T* part = static_cast<T*>(f.workspace) + c * stride;
        if (f.inverse)
          backward_rows<S, decltype(dim)::value, true>(f, layers, begin, end, part);
        else
          backward_rows<S, decltype(dim)::value, false>(f, layers, begin, end, part);
      });
    });
    reduce_parameters(f, layers, chunks);
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
