// What both directions of a masked network are made of on the CPU: sums of a tile of units over a block of samples,
// with lanes that are samples; activations and maps; what goes in and out.
#pragma once

#include "common/columns.h"
#include "ops/masked_autoregressive/masked_autoregressive_math.h"
#include "ops/masked_autoregressive/masked_autoregressive_plan.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

// Units whose sums are taken together: what the registers hold beside one row of the buffer.
constexpr int kTile = kVectorBytes == 64 ? 4 : 2;

template <class T>
struct Weights {
  const T *weights, *biases;
};

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

// --- the network

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

}  // namespace
}  // namespace GF_BACKEND
}  // namespace gf
