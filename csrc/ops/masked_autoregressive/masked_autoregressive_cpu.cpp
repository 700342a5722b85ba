// The inverse of a masked autoregressive transform on the CPU. Lanes are samples: a block of kPacks registers' worth of
// them goes through all stages with its units in cache, while the packed weights are read once, from front to back.
#include "common/columns.h"
#include "ops/masked_autoregressive/masked_autoregressive_math.h"
#include "ops/masked_autoregressive/masked_autoregressive_plan.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

// Units whose sums are taken together: what the registers hold beside one row of the buffer.
constexpr int kTile = kVectorBytes == 64 ? 4 : 2;

// --- packing

template <class T>
struct Weights {
  const T *weights, *biases;
};

template <class T>
void pack_group(const MaskedPlan& plan, const MaskedGroup& g, bool backward, const Weights<T>& from, T** to) {
  const MaskedLayer f = plan.layer(g.layer), other = plan.layer(g.other);
  const int32_t* GF_RESTRICT read = plan.p + other.order + g.from;
  const int64_t count = g.to - g.from;
  for (int first = g.first; first < g.last; first += kTile) {
    const int units = g.last - first < kTile ? g.last - first : kTile;
    T* GF_RESTRICT out = *to;
    for (int u = 0; u < units; ++u) {
      const int64_t own = plan.own(f, first + u);
      out[u] = backward ? T(0) : from.biases[f.biases + own];
      const T* GF_RESTRICT w = from.weights + (backward ? other.weights + own : f.weights + own * other.width);
      const int64_t step = backward ? f.width : 1;
      for (int64_t k = 0; k < count; ++k) out[(k + 1) * units + u] = w[read[k] * step];
    }
    *to += (count + 1) * units;
  }
}

template <class T>
void pack(const MaskedPlan& plan, bool backward, const Weights<T>& from, T* packed) {
  parallel_for(plan.stages(), 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int s = static_cast<int>(i);
      T* to = packed + plan.packed(s);
      for (int g = 0; g <= plan.layers(); ++g) pack_group(plan, masked_group(plan, s, g), false, from, &to);
      if (!backward) continue;
      to = packed + plan.packed_backward(s);
      for (int g = 0; g <= plan.layers(); ++g) pack_group(plan, masked_group_backward(plan, s, g), true, from, &to);
    }
  });
}

// --- sums

// out[u] = bias[u] + sum_k weight[k][u] in[k]; returns the end of the weights.
template <int kUnits, class P, class T>
GF_NOINLINE const T* tile(const T* w, int64_t count, const Packs<P>* in, Packs<P>* out) {
  P sum[kUnits][kPacks];
  for (int u = 0; u < kUnits; ++u)
    for (int p = 0; p < kPacks; ++p) sum[u][p] = P(w[u]);
  w += kUnits;
  for (int64_t k = 0; k < count; ++k, w += kUnits)
    for (int p = 0; p < kPacks; ++p) {
      const P a = in[k].v[p];
      for (int u = 0; u < kUnits; ++u) sum[u][p] = fma(P(w[u]), a, sum[u][p]);
    }
  for (int u = 0; u < kUnits; ++u)
    for (int p = 0; p < kPacks; ++p) out[u].v[p] = sum[u][p];
  return w;
}

template <class P, class T>
const T* sums(const T* w, int units, int64_t count, const Packs<P>* in, Packs<P>* out) {
  for (; units >= kTile; units -= kTile, out += kTile) w = tile<kTile>(w, count, in, out);
  if constexpr (kTile > 2) {
    if (units == 3) return tile<3>(w, count, in, out);
    if (units == 2) return tile<2>(w, count, in, out);
  }
  return units == 1 ? tile<1>(w, count, in, out) : w;
}

// --- activations and maps, each compiled once

template <class P>
using Activate = void (*)(int count, const Packs<P>* before, Packs<P>* value);

template <Activation kKind, class P>
void activate(int count, const Packs<P>* before, Packs<P>* value) {
  for (int i = 0; i < count; ++i)
    for (int p = 0; p < kPacks; ++p) value[i].v[p] = activation<kKind>(before[i].v[p]);
}

template <class P>
using Slope = void (*)(int count, const Packs<P>* before, const Packs<P>* value, Packs<P>* adjoint);

template <Activation kKind, class P>
void times_slope(int count, const Packs<P>* before, const Packs<P>* value, Packs<P>* adjoint) {
  for (int i = 0; i < count; ++i)
    for (int p = 0; p < kPacks; ++p) adjoint[i].v[p] *= activation_slope<kKind>(before[i].v[p], value[i].v[p]);
}

template <class T>
using Solve = void (*)(const MaskedConstants<T>&, const Packs<Native<T>>& z, Packs<Native<T>>* params,
                       Packs<Native<T>>* x, Packs<Native<T>>* log_det);

template <class P>
MaskedParams<P> params_of(Packs<P>* params, int p) {
  return {&params->v[p], kPacks};
}

template <ScaleMap kMap, class T>
void solve_affine(const MaskedConstants<T>& c, const Packs<Native<T>>& z, Packs<Native<T>>* params, Packs<Native<T>>* x,
                  Packs<Native<T>>* log_det) {
  for (int p = 0; p < kPacks; ++p) {
    const Mapped<Native<T>> m = masked_affine<kMap>(c, z.v[p], params_of(params, p));
    x->v[p] = m.x;
    log_det->v[p] += m.log_det;
  }
}

template <bool kInverse, class T>
void solve_spline(const MaskedConstants<T>& c, const Packs<Native<T>>& z, Packs<Native<T>>* params, Packs<Native<T>>* x,
                  Packs<Native<T>>* log_det) {
  for (int p = 0; p < kPacks; ++p) {
    const Mapped<Native<T>> m = masked_spline<kInverse>(c, z.v[p], params_of(params, p));
    x->v[p] = m.x;
    log_det->v[p] += m.log_det;
  }
}

// g is the cotangent of x, and becomes that of z.
template <class T>
using Adjoint = void (*)(const MaskedConstants<T>&, const Packs<Native<T>>& z, const Packs<Native<T>>& x,
                         const Packs<Native<T>>& l, Packs<Native<T>>* params, Packs<Native<T>>* g);

template <ScaleMap kMap, class T>
void adjoint_affine(const MaskedConstants<T>& c, const Packs<Native<T>>& z, const Packs<Native<T>>& x,
                    const Packs<Native<T>>& l, Packs<Native<T>>* params, Packs<Native<T>>* g) {
  for (int p = 0; p < kPacks; ++p)
    g->v[p] = masked_affine_adjoint<kMap>(c, z.v[p], x.v[p], g->v[p], l.v[p], params_of(params, p));
}

template <bool kInverse, class T>
void adjoint_spline(const MaskedConstants<T>& c, const Packs<Native<T>>& z, const Packs<Native<T>>&,
                    const Packs<Native<T>>& l, Packs<Native<T>>* params, Packs<Native<T>>* g) {
  for (int p = 0; p < kPacks; ++p)
    g->v[p] = masked_spline_adjoint<kInverse>(c, z.v[p], g->v[p], l.v[p], params_of(params, p));
}

// --- a block of samples through all stages

template <class T>
struct Network {
  using P = Native<T>;
  MaskedPlan plan;
  MaskedConstants<T> constants;
  Activate<P> activation;
  Slope<P> slope;
  Solve<T> solve;
  Adjoint<T> adjoint;
  const T* packed;
  const void* context;
  int64_t n_context;
  DType dtype;

  Network(const int32_t* p, int32_t kind, const MaskedMap& map, const T* packed_weights, const void* given_context,
          int64_t columns, DType type)
      : plan{p},
        constants(MaskedConstants<T>::from(map)),
        packed(packed_weights),
        context(given_context),
        n_context(columns),
        dtype(type) {
    dispatch_activation(static_cast<Activation>(kind), [&](auto a) {
      activation = &activate<decltype(a)::value, P>;
      slope = &times_slope<decltype(a)::value, P>;
    });
    if (constants.is_spline) {
      solve = constants.inverse ? &solve_spline<true, T> : &solve_spline<false, T>;
      adjoint = constants.inverse ? &adjoint_spline<true, T> : &adjoint_spline<false, T>;
    } else {
      dispatch_scale_map(constants.scale_map, [&](auto m) {
        solve = &solve_affine<decltype(m)::value, T>;
        adjoint = &adjoint_affine<decltype(m)::value, T>;
      });
    }
  }
};

// What context adds to unit `own` of a layer, of the samples row ... row + count - 1.
template <class T>
void add_context(const Network<T>& net, int64_t column, int64_t row, int count, Packs<Native<T>>* to) {
  using P = Native<T>;
  alignas(64) T buffer[ColumnRows<T>::most];
  gather(element(net.context, net.dtype, row * net.n_context + column), net.dtype, Layout{1, count, 0, net.n_context},
         buffer);
  for (int p = 0; p < kPacks; ++p) to->v[p] += load_first<P>(buffer + p * P::size, count - p * P::size);
}

// Computes all hidden units in `rows`. Solves for the numbers, given z (in their own order), which x replaces; or, if
// `known`, takes them from x and leaves all parameters in the buffer.
template <class T>
Packs<Native<T>> sweep(const Network<T>& net, bool known, int64_t row, int count, Packs<Native<T>>* z,
                       Packs<Native<T>>* rows) {
  using R = Packs<Native<T>>;
  const MaskedPlan& plan = net.plan;
  const int layers = plan.layers(), n_params = net.constants.n_params;
  const MaskedLayer inputs = plan.layer(0), params = plan.layer(layers + 1);
  R log_det(0);
  for (int s = 0; s < plan.stages(); ++s) {
    const T* w = net.packed + plan.packed(s);
    MaskedGroup g = masked_group(plan, s, 0);
    R* first = rows + params.value + (known ? g.first : 0);
    w = sums(w, g.last - g.first, g.to, rows + plan.layer(g.other).value, first);
    for (int i = plan.start(inputs, s); i < plan.start(inputs, s + 1); ++i, first += n_params) {
      R* own = z + plan.own(inputs, i);
      R* x = rows + inputs.value + i;
      if (known) {
        *x = *own;
      } else {
        net.solve(net.constants, *own, first, x, &log_det);
        *own = *x;
      }
    }
    for (int l = 1; l <= layers; ++l) {
      g = masked_group(plan, s, l);
      const int units = g.last - g.first;
      if (units == 0) continue;
      const MaskedLayer f = plan.layer(l);
      R* before = rows + f.before + g.first;
      w = sums(w, units, g.to, rows + plan.layer(g.other).value, before);
      if (f.context >= 0)
        for (int u = 0; u < units; ++u) add_context(net, f.context + plan.own(f, g.first + u), row, count, before + u);
      if (f.skip >= 0) {
        const R* other = rows + plan.layer(l - 2).before;
        for (int u = 0; u < units; ++u) before[u] += other[plan.p[f.skip + g.first + u]];
      }
      if (f.active) net.activation(units, before, rows + f.value + g.first);
    }
  }
  return log_det;
}

// The cotangents of all units, in decreasing order of stages; those of z in `g`, which holds those of x.
template <class T>
void sweep_back(const Network<T>& net, const Packs<Native<T>>* z, const Packs<Native<T>>& l, Packs<Native<T>>* g,
                Packs<Native<T>>* rows) {
  using R = Packs<Native<T>>;
  const MaskedPlan& plan = net.plan;
  const int layers = plan.layers();
  const MaskedLayer inputs = plan.layer(0), params = plan.layer(layers + 1);
  for (int s = plan.stages() - 1; s >= 0; --s) {
    const T* w = net.packed + plan.packed_backward(s);
    for (int i = 0; i <= layers; ++i) {
      const MaskedGroup group = masked_group_backward(plan, s, i);
      const int units = group.last - group.first;
      if (units == 0) continue;
      const MaskedLayer f = plan.layer(group.layer);
      R* to = rows + f.adjoint + group.first;
      w = sums(w, units, group.to - group.from, rows + plan.layer(group.other).adjoint + group.from, to);
      if (group.layer == 0) break;
      if (f.active) net.slope(units, rows + f.before + group.first, rows + f.value + group.first, to);
      if (f.skipped >= 0) {
        const R* later = rows + plan.layer(group.layer + 2).adjoint;
        for (int u = 0; u < units; ++u) {
          const int at = plan.p[f.skipped + group.first + u];
          if (at >= 0) to[u] += later[at];
        }
      }
    }
    for (int i = plan.start(inputs, s); i < plan.start(inputs, s + 1); ++i) {
      const int own = plan.own(inputs, i);
      g[own] += rows[inputs.adjoint + i];
      net.adjoint(net.constants, z[own], rows[inputs.value + i], l, rows + params.value + i * net.constants.n_params,
                  g + own);
    }
  }
}

// Weights and biases in the type they are computed in, packed.
template <class T, class Args>
const T* packed_weights(const Args& a, bool backward) {
  T* packed = static_cast<T*>(a.workspace);
  if (is_half(a.dtype)) {
    Scratch<T> copies(a.n_weights + a.n_biases);
    gather(a.weights, a.dtype, a.n_weights, copies.get());
    gather(a.biases, a.dtype, a.n_biases, copies.get() + a.n_weights);
    pack<T>({a.plan}, backward, {copies.get(), copies.get() + a.n_weights}, packed);
  } else {
    pack<T>({a.plan}, backward, {static_cast<const T*>(a.weights), static_cast<const T*>(a.biases)}, packed);
  }
  return packed;
}

// Samples that a thread takes at a time: few pieces, whose buffers are allocated once each.
template <class T>
int64_t grain(int64_t n) {
  constexpr int64_t kPieces = 16, most = ColumnRows<T>::most;
  return ((n + kPieces - 1) / kPieces + most - 1) / most * most;
}

template <class T>
void run_forward(const MaskedAutoregressiveForward& a) {
  using R = Packs<Native<T>>;
  const Network<T> net(a.plan, a.activation, a.map, packed_weights<T>(a, false), a.context, a.n_context, a.dtype);
  parallel_for(a.n, grain<T>(a.n), [&](int64_t begin, int64_t end) {
    ColumnRows<T> rows(a.d, a.dtype);
    Scratch<R> buffer(a.rows), z(a.d);
    int64_t row = begin;
    rows.for_each(begin, end, [&] {
      rows.load(a.z, z.get());
      const int count = static_cast<int>(end - row < rows.most ? end - row : rows.most);
      const R log_det = sweep(net, false, row, count, z.get(), buffer.get());
      rows.store(a.x, z.get());
      rows.store_sum(a.log_det, log_det);
      row += rows.most;
    });
  });
}

// Rows of the buffer to rows of a result [.., n].
template <class T>
void store_units(int units, const Packs<Native<T>>* from, int64_t n, int64_t at, int count, void* result) {
  using P = Native<T>;
  for (int i = 0; i < units; ++i) {
    T* to = static_cast<T*>(result) + i * n + at;
    for (int p = 0; p < kPacks; ++p) store_first(to + p * P::size, from[i].v[p], count - p * P::size);
  }
}

// The cotangents of what context added to a layer.
template <class T>
void store_context(const MaskedAutoregressiveBackward& a, const MaskedPlan& plan, const MaskedLayer& f,
                   const Packs<Native<T>>* adjoint, int64_t row, int count) {
  using P = Native<T>;
  alignas(64) T buffer[ColumnRows<T>::most];
  for (int i = 0; i < f.used; ++i) {
    for (int p = 0; p < kPacks; ++p) store(buffer + p * P::size, adjoint[i].v[p]);
    scatter(buffer, element(a.grad_context, a.dtype, row * a.n_context + f.context + plan.own(f, i)), a.dtype,
            Layout{1, count, 0, a.n_context});
  }
}

template <class T>
void run_backward(const MaskedAutoregressiveBackward& a) {
  using R = Packs<Native<T>>;
  const Network<T> net(a.plan, a.activation, a.map, packed_weights<T>(a, true), a.context, a.n_context, a.dtype);
  const int layers = net.plan.layers();
  parallel_for(a.n, grain<T>(a.n), [&](int64_t begin, int64_t end) {
    ColumnRows<T> rows(a.d, a.dtype);
    Scratch<R> buffer(a.rows), x(a.d), z(a.d), g(a.d);
    int64_t row = begin;
    rows.for_each(begin, end, [&] {
      rows.load(a.x, x.get());
      rows.load(a.z, z.get());
      rows.load(a.grad_x, g.get());
      const int count = static_cast<int>(end - row < rows.most ? end - row : rows.most);
      sweep(net, true, row, count, x.get(), buffer.get());
      sweep_back(net, z.get(), rows.load_sum(a.grad_log_det), g.get(), buffer.get());
      rows.store(a.grad_z, g.get());
      for (int l = 0; l <= layers + 1; ++l) {
        const MaskedLayer f = net.plan.layer(l);
        if (l <= layers) store_units<T>(f.used, buffer.get() + f.value, a.n, f.values * a.n + row, count, a.values);
        if (l > 0) store_units<T>(f.used, buffer.get() + f.adjoint, a.n, f.sums * a.n + row, count, a.adjoint);
        if (f.context >= 0) store_context<T>(a, net.plan, f, buffer.get() + f.adjoint, row, count);
      }
      row += rows.most;
    });
  });
}

// --- the gradients of weights and biases: each is one sum over all samples, so threads do not change it

// sums[i][j] += the product of rows i of `a` and j of `b`, n numbers each.
template <int kOut, int kIn, class T>
GF_NOINLINE void product(const T* const (&a)[kTile], const T* b, int64_t stride, int64_t n, T* sums, int64_t width) {
  using P = Native<T>;
  P sum[kOut][kIn];
  for (int i = 0; i < kOut; ++i)
    for (int j = 0; j < kIn; ++j) sum[i][j] = P(0);
  const auto add = [&](const P(&left)[kOut], int64_t k, int64_t count) {
    for (int j = 0; j < kIn; ++j) {
      const P right = load_first<P>(b + j * stride + k, static_cast<int>(count));
      for (int i = 0; i < kOut; ++i) sum[i][j] = fma(left[i], right, sum[i][j]);
    }
  };
  int64_t k = 0;
  for (; k + P::size <= n; k += P::size) {
    P left[kOut];
    for (int i = 0; i < kOut; ++i) left[i] = load<P>(a[i] + k);
    add(left, k, P::size);
  }
  if (k < n) {
    P left[kOut];
    for (int i = 0; i < kOut; ++i) left[i] = load_first<P>(a[i] + k, static_cast<int>(n - k));
    add(left, k, n - k);
  }
  for (int i = 0; i < kOut; ++i)
    for (int j = 0; j < kIn; ++j) sums[i * width + j] += gf::sum(sum[i][j]);
}

template <class T>
T row_total(const T* p, int64_t n) {
  using P = Native<T>;
  P total(0);
  int64_t k = 0;
  for (; k + P::size <= n; k += P::size) total += load<P>(p + k);
  if (k < n) total += load_first<P>(p + k, static_cast<int>(n - k));
  return sum(total);
}

// Units first ... first + kTile - 1 of a layer.
template <class T>
void unit_gradients(const MaskedAutoregressiveProducts& a, const MaskedPlan& plan, int layer, int first, T* sums,
                    T* line) {
  constexpr int64_t kBlock = 4096;  // samples whose numbers stay in cache
  constexpr int kIn = 4;
  const MaskedLayer f = plan.layer(layer), in = plan.layer(layer - 1);
  const T* values = static_cast<const T*>(a.values) + in.values * a.n;
  const T* adjoint = static_cast<const T*>(a.adjoint) + (f.sums + first) * a.n;
  const int units = f.used - first < kTile ? f.used - first : kTile;
  const int64_t count = plan.p[f.sees + first + units - 1], width = in.used;
  for (int64_t i = 0; i < kTile * width; ++i) sums[i] = T(0);
  T totals[kTile] = {};
  for (int64_t k = 0; k < a.n; k += kBlock) {
    const int64_t n = a.n - k < kBlock ? a.n - k : kBlock;
    const T* rows[kTile];  // of units that are not there, those of the last
    for (int u = 0; u < kTile; ++u) rows[u] = adjoint + (u < units ? u : units - 1) * a.n + k;
    int64_t j = 0;
    for (; j + kIn <= count; j += kIn) product<kTile, kIn>(rows, values + j * a.n + k, a.n, n, sums + j, width);
    for (; j < count; ++j) product<kTile, 1>(rows, values + j * a.n + k, a.n, n, sums + j, width);
    for (int u = 0; u < units; ++u) totals[u] += row_total(rows[u], n);
  }
  for (int u = 0; u < units; ++u) {
    const int64_t own = plan.own(f, first + u), seen = plan.p[f.sees + first + u];
    for (int64_t j = 0; j < in.width; ++j) line[j] = T(0);
    for (int64_t j = 0; j < seen; ++j) line[plan.own(in, static_cast<int>(j))] = sums[u * width + j];
    scatter(line, in.width, element(a.grad_weights, a.dtype, f.weights + own * in.width), a.dtype);
    scatter(totals + u, 1, element(a.grad_biases, a.dtype, f.biases + own), a.dtype);
  }
}

template <class T>
void run_products(const MaskedAutoregressiveProducts& a) {
  const MaskedPlan plan{a.plan};
  int64_t widest = 0;
  for (int l = 0; l <= plan.layers(); ++l) widest = plan.layer(l).width > widest ? plan.layer(l).width : widest;
  for (int l = 1; l <= plan.layers() + 1; ++l) {
    const int64_t used = plan.layer(l).used, tiles = (used + kTile - 1) / kTile;
    parallel_for(tiles, 1, [&](int64_t begin, int64_t) {
      // Later units see more: first and last in turn, so that threads get equal shares.
      const int64_t tile = begin % 2 == 0 ? begin / 2 : tiles - 1 - begin / 2;
      Scratch<T> memory((kTile + 1) * widest);
      unit_gradients(a, plan, l, static_cast<int>(tile * kTile), memory.get(), memory.get() + kTile * widest);
    });
  }
}

}  // namespace

void masked_autoregressive_forward(const MaskedAutoregressiveForward& a) {
  dispatch_real(a.dtype, [&](auto tag) { run_forward<typename decltype(tag)::type>(a); });
}

void masked_autoregressive_backward(const MaskedAutoregressiveBackward& a) {
  dispatch_real(a.dtype, [&](auto tag) { run_backward<typename decltype(tag)::type>(a); });
}

void masked_autoregressive_products(const MaskedAutoregressiveProducts& a) {
  dispatch_real(a.wide, [&](auto tag) { run_products<typename decltype(tag)::type>(a); });
}

}  // namespace GF_BACKEND
}  // namespace gf
