// In which order the inverse of a masked network computes, as genfast/ops/_masked_plan.py writes it into one vector.
//
// Inputs and hidden units have degrees: a hidden unit sees the units before it of its own degree or less, and a
// parameter of an input sees hidden units of smaller degree than the input's. Stage s is the s-th smallest degree. In
// it the parameters of the inputs of that degree are computed, then these inputs, then the hidden units of that degree,
// layer by layer: everything that a sum reads is there, and each unit is computed once. In each layer units are sorted
// by stage, so what a sum reads is a prefix of the layer before it:
//
//   parameters of stage s    read the last hidden layer's units of stages 0 ... s - 1,
//   hidden units of stage s  read the layer before's units of stages 0 ... s.
//
// Read backwards, the cotangent of a hidden unit of stage s is a sum over a suffix of the layer behind it: its hidden
// units of stages s ... or the parameters of stages s + 1 ...; and in decreasing order of stages all of them are there.
// Hidden units that no parameter sees are left out.
//
// Weights are packed in the order in which they are read, stage by stage, in tiles of up to kTile units of one layer:
// the tile's biases, then for each number that it reads the tile's weights.
#pragma once

#include "common/macros.h"

namespace gf {
inline namespace GF_BACKEND {

// Layer 0 is the inputs, 1 ... L the hidden layers, L + 1 the parameters.
struct MaskedLayer {
  int32_t width, used;      // units, and those that are computed
  int32_t starts, order;    // where the plan has: the first sorted unit of each stage; a sorted unit's own number
  int32_t weights, biases;  // where the layer's begin in the flat tensors
  int32_t context;          // the first column of what context adds; -1: nothing
  int32_t skip, skipped;    // where the plan has, by sorted unit: the unit two layers before that is added to it, and
                            // the unit two layers behind to which it is added (or -1); -1 for layers without
  int32_t active;           // whether the activation stands between it and the next layer
  int32_t value, before;    // rows of the buffer: what the next layer reads, and what went into the activation; the
                            // same row where the latter is not needed any more
  int32_t adjoint;          // rows of the cotangents of `before`
  int32_t values, sums;     // the first row of the layer in `values` and in `adjoint` of the backward's results
  int32_t sees;             // where the plan has, by sorted unit, how many units of the layer before are seen
};

struct MaskedPlan {
  const int32_t* p;

  static constexpr int kHeader = 8, kRecord = 16;

  GF_HD int layers() const { return p[0]; }  // hidden ones
  GF_HD int stages() const { return p[1]; }
  GF_HD MaskedLayer layer(int i) const {
    const int32_t* r = p + kHeader + i * kRecord;
    return {r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], r[8], r[9], r[10], r[11], r[12], r[13], r[14], r[15]};
  }
  // The packed weights of stage s; those of the backward follow the forward's.
  GF_HD int64_t packed(int s) const { return p[p[2] + s]; }
  GF_HD int64_t packed_backward(int s) const { return p[p[3] + s]; }
  GF_HD int start(const MaskedLayer& f, int s) const { return p[f.starts + s]; }
  GF_HD int own(const MaskedLayer& f, int i) const { return p[f.order + i]; }
};

// Units [first, last) of a layer in a stage, and what they read: [from, to) of another layer.
struct MaskedGroup {
  int layer, other;
  int first, last, from, to;
};

// Group i of stage s: the parameters, then the hidden layers 1 ... L.
GF_HD MaskedGroup masked_group(const MaskedPlan& plan, int s, int i) {
  const int layer = i == 0 ? plan.layers() + 1 : i;
  const MaskedLayer f = plan.layer(layer), in = plan.layer(layer - 1);
  return {layer, layer - 1, plan.start(f, s), plan.start(f, s + 1), 0, plan.start(in, i == 0 ? s : s + 1)};
}

// The same for cotangents: the hidden layers L ... 1, then the inputs.
GF_HD MaskedGroup masked_group_backward(const MaskedPlan& plan, int s, int i) {
  const int layer = plan.layers() - i;
  const MaskedLayer f = plan.layer(layer), out = plan.layer(layer + 1);
  return {layer, layer + 1, plan.start(f, s), plan.start(f, s + 1), plan.start(out, i == 0 ? s + 1 : s), out.used};
}

// Of the weight between unit u of a group and k of what it reads, the place in the flat tensor.
GF_HD int64_t masked_weight_at(const MaskedPlan& plan, const MaskedGroup& g, bool backward, int u, int k) {
  const MaskedLayer f = plan.layer(g.layer), other = plan.layer(g.other);
  const int64_t a = plan.own(f, u), b = plan.own(other, g.from + k);
  return backward ? other.weights + b * f.width + a : f.weights + a * other.width + b;
}

}  // namespace GF_BACKEND
}  // namespace gf
