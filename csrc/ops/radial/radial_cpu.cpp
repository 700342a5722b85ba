// Radial flow on the CPU. All K layers run over a block of rows as columns (columns.h). The backward runs them again and
// keeps z - center of each; rebuilding z from the output would divide its rounding by q, layer after layer.
#include "common/chunk_sums.h"
#include "common/columns.h"
#include "common/rows.h"
#include "ops/radial/radial.h"
#include "ops/radial/radial_math.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

template <class T>
struct Layers {
  Scratch<T> memory;
  const T *center, *alpha, *beta;

  explicit Layers(const Radial& f)
      : memory(radial_sums(f)), center(memory.get()), alpha(center + f.k * f.d), beta(alpha + f.k) {
    gather(f.center, f.dtype, f.k * f.d, memory.get());
    gather(f.alpha, f.dtype, f.k, memory.get() + f.k * f.d);
    gather(f.beta, f.dtype, f.k, memory.get() + f.k * f.d + f.k);
  }
};

// All layers over a block. `kept`, where it is wanted, gets z - center of each layer, z on the side before its forward.
template <class T, bool kKeep>
void run_layers(const Radial& f, const Layers<T>& layers, Block<Native<T>>& z, Native<T>* log_det, Native<T>* kept) {
  using P = Native<T>;
  for (int64_t i = 0; i < f.k; ++i) {
    const int64_t k = f.inverse ? f.k - 1 - i : i;
    const T* center = layers.center + k * f.d;
    P square[kPacks], scale[kPacks];
    for (int p = 0; p < kPacks; ++p) square[p] = P(0);
    for (int64_t d = 0; d < f.d; ++d) {
      for (int p = 0; p < kPacks; ++p) {
        const P e = z.at(d, p) - P(center[d]);
        square[p] = fma(e, e, square[p]);
      }
    }
    for (int p = 0; p < kPacks; ++p) {
      const RadialLayer<P> layer = radial_layer(f.inverse, square[p], P(layers.alpha[k]), P(layers.beta[k]));
      scale[p] = layer.scale;
      if (!kKeep) log_det[p] += radial_log_det(layer, f.d);
    }
    for (int64_t d = 0; d < f.d; ++d) {
      for (int p = 0; p < kPacks; ++p) {
        const P e = z.at(d, p) - P(center[d]), moved = scale[p] * e;
        if (kKeep) kept[(k * f.d + d) * kPacks + p] = f.inverse ? moved : e;
        z.at(d, p) = P(center[d]) + moved;
      }
    }
  }
}

template <class T>
void forward_rows(const Radial& f, const Layers<T>& layers, int64_t begin, int64_t end) {
  using P = Native<T>;
  constexpr int64_t rows = kPacks * P::size;
  Scratch<P> memory(f.d * kPacks);
  Block<P> z(memory.get());
  Reader<T> input(f.input, f.dtype, rows * f.d);
  Writer<T> output(f.output, f.dtype, rows * f.d);
  for (int64_t row = begin; row < end; row += rows) {
    const int count = static_cast<int>(end - row < rows ? end - row : rows);
    P log_det[kPacks];
    for (int p = 0; p < kPacks; ++p) log_det[p] = P(0);
    load_block<P>(z, input.at(row * f.d, count * f.d), f.d, count);
    run_layers<T, false>(f, layers, z, log_det, nullptr);
    store_block<P>(z, output.at(row * f.d), f.d, count);
    output.finish(row * f.d, count * f.d);
    for (int p = 0; p < kPacks; ++p)
      store_first(static_cast<T*>(f.log_det) + row + p * P::size, f.inverse ? -log_det[p] : log_det[p],
                  count - p * P::size);
  }
}

template <class T>
void backward_rows(const Radial& f, const Layers<T>& layers, int64_t begin, int64_t end, T* GF_RESTRICT part) {
  using P = Native<T>;
  constexpr int64_t rows = kPacks * P::size;
  Scratch<P> memory(f.d * kPacks), kept(f.k * f.d * kPacks);
  Block<P> g(memory.get());  // first z
  Reader<T> input(f.input, f.dtype, rows * f.d), grad_output(f.grad_output, f.dtype, rows * f.d);
  Writer<T> grad_input(f.grad_input, f.dtype, rows * f.d);
  for (int64_t row = begin; row < end; row += rows) {
    const int count = static_cast<int>(end - row < rows ? end - row : rows);
    load_block<P>(g, input.at(row * f.d, count * f.d), f.d, count);
    run_layers<T, true>(f, layers, g, nullptr, kept.get());
    load_block<P>(g, grad_output.at(row * f.d, count * f.d), f.d, count);
    for (int64_t i = 0; i < f.k; ++i) {
      const int64_t k = f.inverse ? i : f.k - 1 - i;
      Block<P> e(kept.get() + k * f.d * kPacks);
      P square[kPacks], v[kPacks], alpha(0), beta(0);
      for (int p = 0; p < kPacks; ++p) square[p] = v[p] = P(0);
      for (int64_t d = 0; d < f.d; ++d) {
        for (int p = 0; p < kPacks; ++p) {
          square[p] = fma(e.at(d, p), e.at(d, p), square[p]);
          v[p] = fma(g.at(d, p), e.at(d, p), v[p]);
        }
      }
      RadialAdjoint<P> adjoint[kPacks];
      for (int p = 0; p < kPacks; ++p) {
        const int lanes = count - p * P::size;
        // Rows that do not exist lie at distance 1, where nothing is infinite, and their zero cotangents stay zero.
        const RadialLayer<P> layer =
            radial_layer(false, keep_first(square[p], lanes, T(1)), P(layers.alpha[k]), P(layers.beta[k]));
        const P l = load_first<P>(static_cast<const T*>(f.grad_log_det) + row + p * P::size, lanes);
        adjoint[p] = radial_adjoint(f.inverse, layer, v[p], l, f.d);
        alpha += adjoint[p].alpha;
        beta += adjoint[p].beta;
      }
      part[f.k * f.d + k] += sum(alpha);
      part[f.k * f.d + f.k + k] += sum(beta);
      for (int64_t d = 0; d < f.d; ++d) {
        P center(0);
        for (int p = 0; p < kPacks; ++p) {
          const P pull = adjoint[p].pull * e.at(d, p);
          center += fma(adjoint[p].change, g.at(d, p), pull);
          g.at(d, p) = fma(adjoint[p].scale, g.at(d, p), pull);
        }
        part[k * f.d + d] -= sum(center);
      }
    }
    store_block<P>(g, grad_input.at(row * f.d), f.d, count);
    grad_input.finish(row * f.d, count * f.d);
  }
}

}  // namespace

void radial_forward(const Radial& f) {
  dispatch_real(f.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Layers<T> layers(f);
    parallel_for(f.n, kChunkRows, [&](int64_t begin, int64_t end) { forward_rows<T>(f, layers, begin, end); });
  });
}

void radial_backward(const Radial& f) {
  dispatch_real(f.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Layers<T> layers(f);
    for_chunks<T>(f.n, radial_sums(f), f.workspace,
                  [&](int64_t begin, int64_t end, T* part) { backward_rows<T>(f, layers, begin, end, part); });
    Scratch<T> total(radial_sums(f));
    add_chunks(f.n, radial_sums(f), f.workspace, total.get());
    scatter(total.get(), f.k * f.d, f.grad_center, f.dtype);
    scatter(total.get() + f.k * f.d, f.k, f.grad_alpha, f.dtype);
    scatter(total.get() + f.k * f.d + f.k, f.k, f.grad_beta, f.dtype);
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
