// The inverse of a masked autoregressive transform on the CPU. Lanes are samples: a block of kPacks registers' worth of
// them goes through all stages with its units in cache, while the packed weights are read once, from front to back.
#include <utility>

#include "ops/masked_autoregressive/masked_autoregressive_cpu.h"
#include "ops/masked_autoregressive/masked_autoregressive_pass.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

// --- packing

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

// --- a block of samples through all stages

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

// f(weights and biases in the type they are computed in)
template <class T, class Args, class F>
void with_weights(const Args& a, F&& f) {
  if (!is_half(a.dtype)) return f(Weights<T>{static_cast<const T*>(a.weights), static_cast<const T*>(a.biases)});
  Scratch<T> copies(a.n_weights + a.n_biases);
  gather(a.weights, a.dtype, a.n_weights, copies.get());
  gather(a.biases, a.dtype, a.n_biases, copies.get() + a.n_weights);
  f(Weights<T>{copies.get(), copies.get() + a.n_weights});
}

template <class T, class Args>
Network<T> network(const Args& a) {
  return Network<T>(a.plan, a.activation, a.map, static_cast<const T*>(a.workspace), a.context, a.n_context, a.dtype);
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
  const Network<T> net = network<T>(a);
  with_weights<T>(a, [&](const Weights<T>& w) { pack(net.plan, false, w, static_cast<T*>(a.workspace)); });
  parallel_for(a.n, grain<T>(a.n), [&](int64_t begin, int64_t end) {
    ColumnRows<T> rows(a.d, a.dtype);
    Scratch<R> buffer(a.rows), z(a.d);
    rows.for_each(begin, end, [&] {
      rows.load(a.z, z.get());
      const R log_det = sweep(net, false, rows.row(), rows.count(), z.get(), buffer.get());
      rows.store(a.x, z.get());
      rows.store_sum(a.log_det, log_det);
    });
  });
}

// What the gradients of the parameters are made of.
template <class R>
void store_results(const MaskedAutoregressiveBackward& a, const MaskedPlan& plan, const R* rows, int64_t row,
                   int count) {
  using T = scalar_t<R>;
  for (int l = 0; l <= plan.layers() + 1; ++l) {
    const MaskedLayer f = plan.layer(l);
    if (f.context >= 0) store_context<T>(a, plan, f, rows + f.adjoint, row, count);
    if (!a.wants_products()) continue;
    if (l <= plan.layers()) store_units<T>(f.used, rows + f.value, a.n, f.values * a.n + row, count, a.values<T>());
    if (l > 0) store_units<T>(f.used, rows + f.adjoint, a.n, f.sums * a.n + row, count, a.adjoint<T>());
  }
}

template <class T>
void run_backward(const MaskedAutoregressiveBackward& a) {
  using R = Packs<Native<T>>;
  const Network<T> net = network<T>(a);
  with_weights<T>(a, [&](const Weights<T>& w) { pack(net.plan, true, w, static_cast<T*>(a.workspace)); });
  parallel_for(a.n, grain<T>(a.n), [&](int64_t begin, int64_t end) {
    ColumnRows<T> rows(a.d, a.dtype);
    Scratch<R> buffer(a.rows), x(a.d), z(a.d), g(a.d);
    rows.for_each(begin, end, [&] {
      rows.load(a.x, x.get());
      rows.load(a.z, z.get());
      rows.load(a.grad_x, g.get());
      sweep(net, true, rows.row(), rows.count(), x.get(), buffer.get());
      sweep_back(net, z.get(), rows.load_sum(a.grad_log_det), g.get(), buffer.get());
      rows.store(a.grad_z, g.get());
      store_results(a, net.plan, buffer.get(), rows.row(), rows.count());
    });
  });
}

// --- all samples in one pass

template <class T>
void run_pass(const MaskedAutoregressiveForward& a) {
  using R = Packs<Native<T>>;
  const Network<T> net = network<T>(a);
  PassTiles tiles(net.plan, false, 0);
  with_weights<T>(a, [&](const Weights<T>& w) { tiles.pack(net.plan, w, static_cast<T*>(a.workspace)); });
  const MaskedLayer inputs = net.plan.layer(0), params = net.plan.layer(net.plan.layers() + 1);
  parallel_for(a.n, grain<T>(a.n), [&](int64_t begin, int64_t end) {
    ColumnRows<T> rows(a.d, a.dtype);
    Scratch<R> buffer(a.rows), x(a.d);
    rows.for_each(begin, end, [&] {
      rows.load(a.z, x.get());
      sort_inputs<T>(net.plan, x.get(), buffer.get());
      pass(net, tiles, rows.row(), rows.count(), buffer.get());
      if (a.sums != nullptr) store_sums<T>(net.plan, buffer.get(), a.n, rows.row(), rows.count(), a.sums);
      R log_det(0);
      for (int i = 0; i < inputs.used; ++i)
        net.solve(net.constants, buffer.get()[inputs.value + i],
                  buffer.get() + params.value + i * net.constants.n_params, x.get() + net.plan.own(inputs, i),
                  &log_det);
      rows.store(a.x, x.get());
      rows.store_sum(a.log_det, log_det);
    });
  });
}

template <class T>
void run_pass_back(const MaskedAutoregressiveBackward& a) {
  using R = Packs<Native<T>>;
  const Network<T> net = network<T>(a);
  PassTiles tiles(net.plan, true, 0);
  with_weights<T>(a, [&](const Weights<T>& w) { tiles.pack(net.plan, w, static_cast<T*>(a.workspace)); });
  const MaskedLayer inputs = net.plan.layer(0), params = net.plan.layer(net.plan.layers() + 1);
  parallel_for(a.n, grain<T>(a.n), [&](int64_t begin, int64_t end) {
    ColumnRows<T> rows(a.d, a.dtype);
    Scratch<R> buffer(a.rows), x(a.d), z(a.d), g(a.d);
    rows.for_each(begin, end, [&] {
      rows.load(a.x, x.get());
      rows.load(a.z, z.get());
      rows.load(a.grad_x, g.get());
      sort_inputs<T>(net.plan, z.get(), buffer.get());
      load_sums(net, buffer.get(), a.n, rows.row(), rows.count(), a.sums);
      const R l = rows.load_sum(a.grad_log_det);
      for (int i = 0; i < inputs.used; ++i) {
        const int own = net.plan.own(inputs, i);
        net.adjoint(net.constants, z.get()[own], x.get()[own], l,
                    buffer.get() + params.value + i * net.constants.n_params, g.get() + own);
      }
      pass_back(net, tiles, g.get(), buffer.get());
      rows.store(a.grad_z, g.get());
      store_results(a, net.plan, buffer.get(), rows.row(), rows.count());
    });
  });
}

// --- the gradients of weights and biases: each is one sum over all samples, so threads do not change it

// Lane l is v_i[l] or v_j[l], by the bit kBit of l; `crossed` takes the lane that differs in that bit.
template <int kBit, class P, int... L>
GF_HD P merge(P a, P b, bool crossed, std::integer_sequence<int, L...>) {
#if GF_HAS_SHUFFLEVECTOR
  constexpr int n = P::size;
  return crossed ? P(__builtin_shufflevector(a.v, b.v, (L & kBit ? n + L - kBit : L + kBit)...))
                 : P(__builtin_shufflevector(a.v, b.v, (L & kBit ? n + L : L)...));
#else
  P r;
  for (int l = 0; l < P::size; ++l) r.set(l, (l & kBit ? b : a)[crossed ? l ^ kBit : l]);
  return r;
#endif
}

// v[0][i] = the sum of the lanes of v[i], for as many packs as a pack has lanes: they are halved step by step.
template <int kBit, class P>
GF_HD void sum_lanes(P* v) {
  using Lanes = std::make_integer_sequence<int, P::size>;
  for (int i = 0; i < kBit; ++i)
    v[i] = merge<kBit>(v[i], v[i + kBit], false, Lanes{}) + merge<kBit>(v[i], v[i + kBit], true, Lanes{});
  if constexpr (kBit > 1) sum_lanes<kBit / 2>(v);
}

// sums[i][j] += the product of rows i of `a` and j of `b`, n numbers each.
template <int kOut, int kIn, class T>
GF_NOINLINE void product(const T* const (&a)[kTile], const T* b, int64_t stride, int64_t n, T* sums, int64_t width) {
  using P = Native<T>;
  constexpr int kCells = kOut * kIn, kGroups = (kCells + P::size - 1) / P::size;
  P sum[kGroups * P::size];
  for (int i = 0; i < kGroups * P::size; ++i) sum[i] = P(0);
  const auto add = [&](const P(&left)[kOut], int64_t k, int64_t count) {
    for (int j = 0; j < kIn; ++j) {
      const P right = load_first<P>(b + j * stride + k, static_cast<int>(count));
      for (int i = 0; i < kOut; ++i) sum[i * kIn + j] = fma(left[i], right, sum[i * kIn + j]);
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
  alignas(64) T total[kGroups * P::size];
  for (int g = 0; g < kGroups; ++g) {
    sum_lanes<P::size / 2>(sum + g * P::size);
    store(total + g * P::size, sum[g * P::size]);
  }
  for (int i = 0; i < kOut; ++i)
    for (int j = 0; j < kIn; ++j) sums[i * width + j] += total[i * kIn + j];
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
void unit_gradients(const MaskedAutoregressiveBackward& a, const MaskedPlan& plan, int layer, int first, T* sums,
                    T* line) {
  constexpr int64_t kBlock = 4096;  // samples whose numbers stay in cache
  constexpr int kIn = 4;
  const MaskedLayer f = plan.layer(layer), in = plan.layer(layer - 1);
  const T* values = a.values<T>() + in.values * a.n;
  const T* adjoint = a.adjoint<T>() + (f.sums + first) * a.n;
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
void run_products(const MaskedAutoregressiveBackward& a) {
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
  dispatch_real(a.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    a.pass ? run_pass<T>(a) : run_forward<T>(a);
  });
}

void masked_autoregressive_backward(const MaskedAutoregressiveBackward& a) {
  dispatch_real(a.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    a.pass ? run_pass_back<T>(a) : run_backward<T>(a);
    if (a.wants_products()) run_products<T>(a);
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
