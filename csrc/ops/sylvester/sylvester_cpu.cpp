// Sylvester flow on the CPU: rows as columns (columns.h), of which each layer takes products with U and W
// (column_products.h). The backward runs a chunk's rows together, layer by layer, so that sums over rows leave the
// registers once a layer; it runs the layers again from the input and keeps what they meet for the rows in flight.
#include "common/chunk_sums.h"
#include "common/column_products.h"
#include "common/log_product.h"
#include "ops/sylvester/sylvester_math.h"
#include "ops/sylvester/sylvester_sizes.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

// c[m, n] += a b, with a[i, j] at a[i row + j col].
template <class T>
GF_NOINLINE void add_matrix_product(const T* a, int64_t row, int64_t col, const T* b, int64_t m, int64_t inner,
                                    int64_t n, T* c) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < inner; ++j) {
      const T x = a[i * row + j * col];
      for (int64_t e = 0; e < n; ++e) c[i * n + e] += x * b[j * n + e];
    }
}

// The arguments of one layer in the compute type, with zeros below the diagonals, and transposes.
template <class T>
struct Arguments {
  Scratch<T> memory;
  T *q, *r1, *r2, *r1_t, *r2_t;

  explicit Arguments(const Sylvester& f)
      : memory(f.d * f.m + 4 * f.m * f.m),
        q(memory.get()),
        r1(q + f.d * f.m),
        r2(r1 + f.m * f.m),
        r1_t(r2 + f.m * f.m),
        r2_t(r1_t + f.m * f.m) {}
  void load(const Sylvester& f, int64_t k) {
    const int64_t m = f.m, square = m * m;
    gather(element(f.q, f.dtype, k * f.d * m), f.dtype, f.d * m, q);
    gather(element(f.r1, f.dtype, k * square), f.dtype, square, r1);
    gather(element(f.r2, f.dtype, k * square), f.dtype, square, r2);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < m; ++j) {
        r1_t[j * m + i] = r1[i * m + j] = i <= j ? r1[i * m + j] : T(0);
        r2_t[j * m + i] = r2[i * m + j] = i <= j ? r2[i * m + j] : T(0);
      }
  }
};

// U, W, T and b of every layer.
template <class T>
class Layers {
 public:
  struct Layer {
    const T *u, *w, *square, *t, *b;
  };

  explicit Layers(const Sylvester& f) : size_(2 * f.d * f.m + f.m * f.m + 2 * f.m), f_(f), memory_(f.k * size_) {
    const int64_t d = f.d, m = f.m;
    parallel_for(f.k, 1, [&](int64_t k, int64_t) {
      Arguments<T> in(f);
      in.load(f, k);
      T *u = memory_.get() + k * size_, *w = u + d * m, *square = w + d * m, *t = square + m * m;
      for (int64_t i = 0; i < size_; ++i) u[i] = 0;
      add_matrix_product(in.q, m, 1, in.r1, d, m, m, u);
      add_matrix_product(in.q, m, 1, in.r2_t, d, m, m, w);
      add_matrix_product(in.r2, m, 1, in.r1, m, m, m, square);
      if (f.inverse)
        for (int64_t i = 0; i < d * m; ++i) u[i] = -u[i];
      for (int64_t i = 0; i < m; ++i)
        t[i] = sylvester_diagonal(f.inverse, square[i * m + i], storage_epsilon<T>(f.dtype));
      gather(element(f.b, f.dtype, k * m), f.dtype, m, t + m);
    });
  }
  // The i-th layer that a row comes to.
  Layer operator[](int64_t i) {
    const T *u = memory_.get() + index(i) * size_, *w = u + f_.d * f_.m, *square = w + f_.d * f_.m,
            *t = square + f_.m * f_.m;
    return {u, w, square, t, t + f_.m};
  }
  int64_t index(int64_t i) const { return f_.inverse ? f_.k - 1 - i : i; }

 private:
  const int64_t size_;
  const Sylvester& f_;
  Scratch<T> memory_;
};

// Solves unit i of the inverse, where h of those behind it is known.
template <class P, class Layer>
GF_NOINLINE void substitute(const Sylvester& f, const Layer& layer, int64_t i, const Packs<P>* h, P* a) {
  Packs<P> y = h[i];
  for (int64_t j = i + 1; j < f.m; ++j)
    for (int p = 0; p < kPacks; ++p) y.v[p] = fma(P(-layer.square[i * f.m + j]), h[j].v[p], y.v[p]);
  y = sylvester_unit(true, y, Packs<P>(layer.t[i]));
  for (int p = 0; p < kPacks; ++p) a[p] = y.v[p];
}

// From a row's numbers z the units h of a layer; unit(i, p, layer) for pack p of each. (Packs are not copied whole: the
// compiler would do it by halves of a register, and the processor wait to read what was written so.)
template <class P, class Layer, class F>
GF_HD void run_units(const Sylvester& f, const Layer& layer, const Packs<P>* z, Packs<P>* h, F&& unit) {
  const int64_t m = f.m;
  for (int64_t i = 0; i < m; ++i)
    for (int p = 0; p < kPacks; ++p) h[i].v[p] = P(layer.b[i]);
  add_product(layer.w, 1, m, m, f.d, z, h, h);
  for (int64_t step = 0; step < m; ++step) {
    const int64_t i = f.inverse ? m - 1 - step : step;
    P a[kPacks];
    if (f.inverse) {
      substitute(f, layer, i, h, a);
    } else {
      for (int p = 0; p < kPacks; ++p) a[p] = h[i].v[p];
    }
    for (int p = 0; p < kPacks; ++p) {
      const PlanarLayer<P> found = planar_layer(a[p], P(layer.t[i]));
      h[i].v[p] = found.h;
      unit(i, p, found);
    }
  }
}

template <class T>
void forward_rows(const Sylvester& f, Layers<T>& layers, int64_t begin, int64_t end) {
  using P = Native<T>;
  using R = Packs<P>;
  ColumnRows<T> rows(f.d, f.dtype);
  Scratch<R> memory(f.d + f.m);
  R *z = memory.get(), *h = z + f.d;
  rows.for_each(begin, end, [&] {
    rows.load(f.input, z);
    LogProduct<P> product[kPacks];
    for (int64_t i = 0; i < f.k; ++i) {
      const auto layer = layers[i];
      run_units(f, layer, z, h, [&](int64_t, int p, const PlanarLayer<P>& unit) { product[p].multiply(unit.q); });
      add_product(layer.u, f.m, 1, f.d, f.m, h, z, z);
    }
    R log_det;
    for (int p = 0; p < kPacks; ++p) log_det.v[p] = f.inverse ? -product[p].log_abs() : product[p].log_abs();
    rows.store_sum(f.log_det, log_det);
    rows.store(f.output, z);
  });
}

// The numbers of the rows in flight: `blocks` blocks of them.
template <class T>
struct Kept {
  using R = Packs<Native<T>>;
  int64_t d, m, blocks;  // d and m in whole tiles; what is past the end is zero
  Scratch<R> memory;
  R *g, *e, *l;

  Kept(const Sylvester& f, int64_t rows)
      : d(kOuterTile * outer_tiles(f.d)),
        m(kOuterTile * outer_tiles(f.m)),
        blocks((rows + ColumnRows<T>::most - 1) / ColumnRows<T>::most),
        memory(blocks * (f.k * layer() + d + m + 1)),
        g(memory.get() + blocks * f.k * layer()),
        e(g + blocks * d),
        l(e + blocks * m) {
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t k = 0; k < f.k; ++k) {
        for (int64_t i = f.d; i < d; ++i) z(k)[block * d + i] = R(0);
        for (int64_t i = f.m; i < m; ++i) h(k)[block * m + i] = R(0);
      }
      for (int64_t i = f.d; i < d; ++i) g[block * d + i] = R(0);
      for (int64_t i = f.m; i < m; ++i) e[block * m + i] = R(0);
    }
  }
  int64_t layer() const { return d + 2 * m; }
  // Of a layer: what it was given, and tanh and its derivative of each unit.
  R* z(int64_t k) { return memory.get() + blocks * k * layer(); }
  R* h(int64_t k) { return z(k) + blocks * d; }
  R* s(int64_t k) { return h(k) + blocks * m; }
};

template <class T>
void run_again(const Sylvester& f, Layers<T>& layers, ColumnRows<T>& rows, Kept<T>& kept, int64_t block) {
  using R = Packs<Native<T>>;
  rows.load(f.input, kept.z(0) + block * kept.d);
  for (int64_t k = 0; k < f.k; ++k) {
    const auto layer = layers[k];
    R *z = kept.z(k) + block * kept.d, *h = kept.h(k) + block * kept.m, *s = kept.s(k) + block * kept.m;
    run_units(f, layer, z, h, [&](int64_t i, int p, const PlanarLayer<Native<T>>& unit) { s[i].v[p] = unit.s; });
    if (k + 1 < f.k) add_product(layer.u, f.m, 1, f.d, f.m, h, z, kept.z(k + 1) + block * kept.d);
    // Rows that do not exist have q = 1 and add nothing.
    for (int64_t i = 0; i < f.m && !rows.all_exist(); ++i) h[i] = rows.existing(h[i], 0), s[i] = rows.existing(s[i], 0);
  }
}

// Gradients of some rows; sums over them go to `part`, those of a layer (SylvesterSums) behind those of another.
template <class T>
void backward_rows(const Sylvester& f, Layers<T>& layers, int64_t begin, int64_t end, T* part) {
  using P = Native<T>;
  using R = Packs<P>;
  const int64_t m = f.m;
  const SylvesterSums at(f);
  ColumnRows<T> rows(f.d, f.dtype);
  Kept<T> kept(f, end - begin);
  const int64_t whole = (m + P::size - 1) / P::size * P::size;
  Scratch<P> totals(2 * whole);  // lanes of e and c
  int64_t block = 0;
  rows.for_each(begin, end, [&] {
    run_again(f, layers, rows, kept, block);
    rows.load(f.grad_output, kept.g + block * kept.d);
    kept.l[block++] = rows.load_sum(f.grad_log_det);
  });
  for (int64_t k = f.k - 1; k >= 0; --k) {
    const auto layer = layers[k];
    T* sums = part + layers.index(k) * at.size();
    for (int64_t i = 0; i < 2 * whole; ++i) totals.get()[i] = P(0);
    for (block = 0; block < kept.blocks; ++block) {
      R* e = kept.e + block * kept.m;
      const R *h = kept.h(k) + block * kept.m, *s = kept.s(k) + block * kept.m;
      for (int64_t i = 0; i < m; ++i)
        for (int p = 0; p < kPacks; ++p) e[i].v[p] = P(0);
      add_product(layer.u, 1, m, m, f.d, kept.g + block * kept.d, e, e);
      for (int64_t i = 0; i < m; ++i) {
        const P t(layer.t[i]);
        P sum_e(0), sum_c(0);
        for (int p = 0; p < kPacks; ++p) {
          const P s_p = s[i].v[p];
          const PlanarAdjoint<P> adjoint =
              sylvester_adjoint(f.inverse, h[i].v[p], s_p, t, e[i].v[p], kept.l[block].v[p]);
          P found = adjoint.t;
          if (f.inverse) {
            P others(0);
            for (int64_t j = 0; j < i; ++j) others = fma(P(layer.square[j * m + i]), e[j].v[p], others);
            found = sylvester_substituted(found, s_p, t, others);
          }
          e[i].v[p] = found;
          sum_e += found;
          sum_c += adjoint.c;
        }
        totals.get()[i] += sum_e;
        totals.get()[whole + i] += sum_c;
      }
    }
    add_sums(totals.get(), m, sums + at.b());
    add_sums(totals.get() + whole, m, sums + at.c());
    add_outer(kept.g, kept.d, f.d, kept.h(k), kept.m, m, kept.blocks, sums + at.u());
    add_outer(kept.z(k), kept.d, f.d, kept.e, kept.m, m, kept.blocks, sums + at.w());
    if (f.inverse) add_outer(kept.e, kept.m, m, kept.h(k), kept.m, m, kept.blocks, sums + at.square());
    for (block = 0; block < kept.blocks; ++block) {
      R* g = kept.g + block * kept.d;
      add_product(layer.w, m, 1, f.d, m, kept.e + block * kept.m, g, g);
    }
  }
  block = 0;
  rows.for_each(begin, end, [&] { rows.store(f.grad_input, kept.g + block++ * kept.d); });
}

// The gradients of the arguments from those of U, W and T.
template <class T>
void finish_layer(const Sylvester& f, int64_t k, const T* sums) {
  const int64_t d = f.d, m = f.m, wide = d * m, square = m * m;
  const SylvesterSums at(f);
  Arguments<T> in(f);
  in.load(f, k);
  Scratch<T> memory(3 * wide + 3 * square);
  T *du = memory.get(), *dw = du + wide, *dt = dw + wide, *dq = dt + square, *dr1 = dq + wide, *dr2 = dr1 + square;
  const T sign = f.inverse ? -1 : 1;
  for (int64_t i = 0; i < d; ++i)
    for (int64_t j = 0; j < m; ++j) {
      du[i * m + j] = sign * sums[at.u() + outer_at(i, j, m)];
      dw[i * m + j] = sums[at.w() + outer_at(i, j, m)];
    }
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < m; ++j) {
      T total = f.inverse && i <= j ? sums[at.square() + outer_at(i, j, m)] : T(0);
      if (i == j) total += sums[at.c() + i];
      dt[i * m + j] = sign * total;
    }
  for (T* p = dq; p < dr2 + square; ++p) *p = 0;
  add_matrix_product(du, m, 1, in.r1_t, d, m, m, dq);
  add_matrix_product(dw, m, 1, in.r2, d, m, m, dq);
  add_matrix_product(in.q, 1, m, du, m, d, m, dr1);
  add_matrix_product(in.r2, 1, m, dt, m, m, m, dr1);
  add_matrix_product(dw, 1, m, in.q, m, d, m, dr2);
  add_matrix_product(dt, m, 1, in.r1_t, m, m, m, dr2);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < i; ++j) dr1[i * m + j] = dr2[i * m + j] = 0;
  scatter(dq, wide, element(f.grad_q, f.dtype, k * wide), f.dtype);
  scatter(dr1, square, element(f.grad_r1, f.dtype, k * square), f.dtype);
  scatter(dr2, square, element(f.grad_r2, f.dtype, k * square), f.dtype);
  scatter(sums + at.b(), m, element(f.grad_b, f.dtype, k * m), f.dtype);
}

}  // namespace

void sylvester_forward(const Sylvester& f) {
  dispatch_real(f.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    Layers<T> layers(f);
    parallel_for(f.n, kChunkRows, [&](int64_t begin, int64_t end) { forward_rows<T>(f, layers, begin, end); });
  });
}

void sylvester_backward(const Sylvester& f) {
  dispatch_real(f.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    Layers<T> layers(f);
    const int64_t size = SylvesterSums(f).size(), width = f.k * size;
    for_chunks<T>(f.n, width, f.workspace, [&](int64_t begin, int64_t end, T* part) {
      for (int64_t row = begin; row < end; row += kChunkRows)
        backward_rows<T>(f, layers, row, row + kChunkRows < end ? row + kChunkRows : end, part);
    });
    Scratch<T> total(width);
    add_chunks(f.n, width, f.workspace, total.get());
    parallel_for(f.k, 1, [&](int64_t k, int64_t) { finish_layer<T>(f, k, total.get() + k * size); });
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
