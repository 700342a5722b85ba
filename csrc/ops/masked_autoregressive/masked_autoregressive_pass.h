// One pass of a masked network on the CPU: the direction in which all numbers are known. Layer by layer, in tiles of
// neighbouring sorted units: what a tile reads is a prefix of the layer before it, and its cotangent comes from a
// suffix of the layer behind it, so of the weights outside the masks only those of its own rim are multiplied, as
// zeros.
#pragma once

#include "ops/masked_autoregressive/masked_autoregressive_cpu.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

// Units first ... first + units - 1 of a layer, what they read of another one, and where their packed weights are.
struct PassTile {
  int layer, other;
  int first, units, from, to;
  int64_t at;
};

// The tiles of all layers in the order of a pass, of one direction.
class PassTiles {
 public:
  PassTiles(const MaskedPlan& plan, bool backward, int64_t at) : tiles_(most(plan)), backward_(backward) {
    const int layers = plan.layers();
    for (int i = 0; i <= layers; ++i) {
      const int layer = backward ? layers - i : i + 1, other = backward ? layer + 1 : layer - 1;
      const MaskedLayer f = plan.layer(layer), o = plan.layer(other);
      int from = 0;
      for (int first = 0; first < f.used; first += kTile) {
        PassTile t{layer, other, first, f.used - first < kTile ? f.used - first : kTile, 0, o.used, at};
        if (backward) {
          while (from < o.used && plan.p[o.sees + from] <= first) ++from;
          t.from = from;
        } else {
          t.to = plan.p[f.sees + first + t.units - 1];
        }
        at += (t.to - t.from + 1) * t.units;
        tiles_.get()[count_++] = t;
      }
    }
    end_ = at;
  }

  int count() const { return count_; }
  const PassTile& operator[](int i) { return tiles_.get()[i]; }
  int64_t end() const { return end_; }  // of the packed weights

  template <class T>
  void pack(const MaskedPlan& plan, const Weights<T>& from, T* packed) {
    parallel_for(count_, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) pack_tile(plan, tiles_.get()[i], from, packed + tiles_.get()[i].at);
    });
  }

 private:
  static int64_t most(const MaskedPlan& plan) {
    int64_t count = 0;
    for (int l = 0; l <= plan.layers() + 1; ++l) count += plan.layer(l).used / kTile + 1;
    return count;
  }

  template <class T>
  void pack_tile(const MaskedPlan& plan, const PassTile& t, const Weights<T>& from, T* GF_RESTRICT out) const {
    const MaskedLayer f = plan.layer(t.layer), o = plan.layer(t.other);
    const int32_t *read = plan.p + o.order, *sees = plan.p + (backward_ ? o.sees : f.sees);
    for (int u = 0; u < t.units; ++u) {
      const int unit = t.first + u;
      const int64_t own = plan.own(f, unit);
      out[u] = backward_ ? T(0) : from.biases[f.biases + own];
      T* GF_RESTRICT to = out + t.units + u;
      const T* GF_RESTRICT w = from.weights + (backward_ ? o.weights + own : f.weights + own * o.width);
      for (int k = t.from; k < t.to; ++k, to += t.units) {
        const bool there = backward_ ? unit < sees[k] : k < sees[unit];
        *to = there ? w[read[k] * static_cast<int64_t>(backward_ ? f.width : 1)] : T(0);
      }
    }
  }

  Scratch<PassTile> tiles_;
  int count_ = 0;
  int64_t end_ = 0;
  bool backward_;
};

template <class T>
void run_tile(const PassTile& t, const T* packed, const Packs<Native<T>>* in, Packs<Native<T>>* out) {
  sums(packed + t.at, t.units, t.to - t.from, in + t.from, out + t.first);
}

// The rows' numbers in sorted order into the buffer.
template <class T>
void sort_inputs(const MaskedPlan& plan, const Packs<Native<T>>* x, Packs<Native<T>>* rows) {
  const MaskedLayer inputs = plan.layer(0);
  for (int i = 0; i < inputs.used; ++i) rows[inputs.value + i] = x[plan.own(inputs, i)];
}

// All sums of the network for the numbers in the buffer.
template <class T>
void pass(const Network<T>& net, PassTiles& tiles, int64_t row, int count, Packs<Native<T>>* rows) {
  using R = Packs<Native<T>>;
  const MaskedPlan& plan = net.plan;
  for (int i = 0; i < tiles.count(); ++i) {
    const PassTile& t = tiles[i];
    const MaskedLayer f = plan.layer(t.layer);
    run_tile(t, net.packed, rows + plan.layer(t.other).value, rows + f.before);
    if (t.first + t.units < f.used || t.layer > plan.layers()) continue;
    R* before = rows + f.before;
    if (f.context >= 0)
      for (int u = 0; u < f.used; ++u) add_context(net, f.context + plan.own(f, u), row, count, before + u);
    if (f.skip >= 0)
      for (int u = 0; u < f.used; ++u) before[u] += rows[plan.layer(t.layer - 2).before + plan.p[f.skip + u]];
    if (f.active) net.activation(f.used, before, rows + f.value);
  }
}

// The cotangents of all sums and, added to `g`, of the numbers, given those of the parameters.
template <class T>
void pass_back(const Network<T>& net, PassTiles& tiles, Packs<Native<T>>* g, Packs<Native<T>>* rows) {
  using R = Packs<Native<T>>;
  const MaskedPlan& plan = net.plan;
  for (int i = 0; i < tiles.count(); ++i) {
    const PassTile& t = tiles[i];
    const MaskedLayer f = plan.layer(t.layer);
    R* to = rows + f.adjoint;
    run_tile(t, net.packed, rows + plan.layer(t.other).adjoint, to);
    if (t.first + t.units < f.used) continue;
    if (t.layer == 0) {
      for (int u = 0; u < f.used; ++u) g[plan.own(f, u)] += to[u];
      continue;
    }
    if (f.active) net.slope(f.used, rows + f.before, rows + f.value, to);
    if (f.skipped < 0) continue;
    const R* later = rows + plan.layer(t.layer + 2).adjoint;
    for (int u = 0; u < f.used; ++u) {
      const int at = plan.p[f.skipped + u];
      if (at >= 0) to[u] += later[at];
    }
  }
}

// The sums of a block, which the forward keeps, to and from `sums` [.., n].
template <class T>
void store_sums(const MaskedPlan& plan, const Packs<Native<T>>* rows, int64_t n, int64_t row, int count, void* sums) {
  for (int l = 1; l <= plan.layers() + 1; ++l) {
    const MaskedLayer f = plan.layer(l);
    store_units<T>(f.used, rows + f.before, n, f.sums * n + row, count, sums);
  }
}

template <class T>
void load_sums(const Network<T>& net, Packs<Native<T>>* rows, int64_t n, int64_t row, int count, const void* sums) {
  using P = Native<T>;
  for (int l = 1; l <= net.plan.layers() + 1; ++l) {
    const MaskedLayer f = net.plan.layer(l);
    for (int i = 0; i < f.used; ++i) {
      const T* from = static_cast<const T*>(sums) + (f.sums + i) * n + row;
      for (int p = 0; p < kPacks; ++p) rows[f.before + i].v[p] = load_first<P>(from + p * P::size, count - p * P::size);
    }
    if (f.active) net.activation(f.used, rows + f.before, rows + f.value);
  }
}

}  // namespace
}  // namespace GF_BACKEND
}  // namespace gf
