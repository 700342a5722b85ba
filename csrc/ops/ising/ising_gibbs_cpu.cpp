// Gibbs sampling on graphs on the CPU. A group is as many chains as a register has lanes, with the states of a unit in
// one register, so the weight of an edge is read once for all of them.
#include <cstdint>

#include "common/gibbs_lanes.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "ops/ising/ising.h"
#include "ops/ising/ising_lanes.h"
#include "ops/ising/ising_states.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

// The graph in the order of places.
struct Places {
  Scratch<int64_t> start;  // [units + 1] of the edges
  Scratch<int64_t> from;   // [edges] place of the neighbour
  Scratch<float> weight;   // [edges]

  explicit Places(const IsingGibbs& f) : start(f.units + 1), from(f.edges), weight(f.edges) {}
};

// Checks the graph and its colouring, and lays it out; returns the faults.
int32_t lay_out(const IsingGibbs& f, Places& to) {
  const int64_t units = f.units;
  if (f.row_ptr[0] != 0 || f.row_ptr[units] != f.edges) return kIsingBadGraph;
  for (int64_t i = 0; i < units; ++i)
    if (f.row_ptr[i] > f.row_ptr[i + 1]) return kIsingBadGraph;
  const int64_t colours = f.n_colours;
  if (f.offsets[0] != 0 || f.offsets[colours] != units) return kIsingBadColours;
  Scratch<int64_t> place(units), colour(units);
  for (int64_t i = 0; i < units; ++i) place.get()[i] = -1;
  for (int64_t c = 0; c < colours; ++c) {
    if (f.offsets[c] > f.offsets[c + 1]) return kIsingBadColours;
    for (int64_t p = f.offsets[c]; p < f.offsets[c + 1]; ++p) {
      const int64_t i = f.order[p];
      if (i < 0 || i >= units || place.get()[i] >= 0) return kIsingBadColours;
      place.get()[i] = p;
      colour.get()[i] = c;
    }
  }
  int32_t status = 0;
  int64_t e = 0;
  for (int64_t p = 0; p < units; ++p) {
    const int64_t i = f.order[p];
    to.start.get()[p] = e;
    float sum = f.bias[i] < 0 ? -f.bias[i] : f.bias[i];
    int64_t last = -1;
    for (int64_t k = f.row_ptr[i]; k < f.row_ptr[i + 1]; ++k, ++e) {
      const int64_t j = f.columns[k];
      if (j <= last || j >= units) return kIsingBadGraph;
      last = j;
      if (colour.get()[j] == colour.get()[i]) status |= kIsingBadColours;
      const float w = f.weights[k];
      sum += w < 0 ? -w : w;
      to.from.get()[e] = place.get()[j];
      to.weight.get()[e] = w;
    }
    if (magnitude_bits(sum) >= 0x7f800000u) status |= kIsingNotFinite;
  }
  to.start.get()[units] = e;
  if (!f.validate || status) return status;
  // Rows ascend, so going through all edges (i, j) by i meets those of row j in its order.
  Scratch<int64_t> next(units);
  for (int64_t i = 0; i < units; ++i) next.get()[i] = f.row_ptr[i];
  for (int64_t i = 0; i < units; ++i) {
    for (int64_t k = f.row_ptr[i]; k < f.row_ptr[i + 1]; ++k) {
      const int64_t j = f.columns[k], like = next.get()[j]++;
      if (like >= f.row_ptr[j + 1] || f.columns[like] != i || f.weights[like] != f.weights[k]) return kIsingAsymmetric;
    }
  }
  return 0;
}

template <class E>
class Group {
 public:
  Group(const IsingGibbs& f, Places& places, const SpinCode<E>& code, int64_t group)
      : f_(f),
        start_(places.start.get()),
        from_(places.from.get()),
        weight_(places.weight.get()),
        code_(code),
        first_(group * kLanes),
        states_(f.units),
        down_(f.spin ? -1.0f : 0.0f) {
    chain_ = lane_numbers() + (f.first_chain + static_cast<uint32_t>(first_));
  }

  int32_t run() {
    constexpr int64_t kBlock = 256;  // units of a task where threads share a group
    const int32_t status = load();
    for (int64_t s = 0; s < f_.n_sweeps; ++s) {
      for (int64_t c = 0; c < kLanes; ++c) beta_[c] = c < chains_here() && !bad_[c] ? beta(s, c) : 0.0f;
      const uint32_t step = f_.first_step + static_cast<uint32_t>(s);
      for (int64_t colour = 0; colour < f_.n_colours; ++colour) {
        const int64_t begin = f_.offsets[colour], end = f_.offsets[colour + 1];
        const int64_t blocks = (end + 3) / 4 - begin / 4;
        parallel_for(blocks, kBlock / 4, [&](int64_t b0, int64_t b1) {
          for (int64_t b = begin / 4 + b0; b < begin / 4 + b1; ++b) {
            const int64_t from = 4 * b < begin ? begin : 4 * b, to = 4 * b + 4 < end ? 4 * b + 4 : end;
            draw(b, from, to, step);
          }
        });
      }
    }
    store();
    return status;
  }

 private:
  int64_t chains_here() const { return f_.n - first_ < kLanes ? f_.n - first_ : kLanes; }

  float beta(int64_t sweep, int64_t chain) const {
    return f_.beta[(f_.beta_sweeps > 1 ? sweep : 0) * f_.beta_chains + (f_.beta_chains > 1 ? first_ + chain : 0)];
  }

  // Draws places [from, to), all in block b.
  void draw(int64_t b, int64_t from, int64_t to, uint32_t step) {
    const PhiloxWords<WordLanes> random = philox_lanes(chain_, WordLanes{} + static_cast<uint32_t>(b), step,
                                                       kStreamIsing, static_cast<uint64_t>(*f_.seed));
    FloatLanes* states = states_.get();
    const FloatLanes up = VectorLane::splat(1.0f), down = VectorLane::splat(down_);
    for (int64_t p = from; p < to; ++p) {
      FloatLanes field = VectorLane::splat(f_.bias[f_.order[p]]);
      for (int64_t e = start_[p]; e < start_[p + 1]; ++e)
        field = rounded_add(field, rounded_mul(VectorLane::splat(weight_[e]), states[from_[e]]));
      if (f_.spin) field = rounded_mul(field, VectorLane::splat(2.0f));
      const FloatLanes z = rounded_mul(field, beta_);
      const FloatLanes t = exp_negative<VectorLane>(VectorLane::greater(VectorLane::splat(0.0f), z) ? -z : z);
      const IntLanes on = gibbs_accept_logit<VectorLane>(z, t, random.w[p - 4 * b]);
      FloatLanes drawn = (FloatLanes)((on & (IntLanes)up) | (~on & (IntLanes)down));
      if (f_.clamp) {
        const int64_t unit = f_.order[p];
        if (!f_.clamp_per_chain) {
          if (f_.clamp[unit]) continue;
        } else {
          for (int64_t c = 0; c < chains_here(); ++c)
            if (f_.clamp[(first_ + c) * f_.units + unit]) drawn[c] = states[p][c];
        }
      }
      states[p] = drawn;
    }
  }

  int32_t load() {
    int32_t status = 0;
    const E seen = static_cast<E>(~code_.ignored);
    for (int64_t c = 0; c < chains_here(); ++c) {
      for (int64_t s = 0; s < f_.beta_sweeps; ++s) bad_[c] = bad_[c] || !is_temperature(beta(s, c));
      status |= bad_[c] ? kIsingBadBeta : 0;
    }
    for (int64_t p = 0; p < f_.units; ++p) {
      FloatLanes state{};
      for (int64_t c = 0; c < chains_here(); ++c) {
        const E x = static_cast<const E*>(f_.s)[(first_ + c) * f_.units + f_.order[p]];
        const bool on = x == code_.up;
        if (!on && static_cast<E>(x & seen) != code_.down) bad_[c] = true, status |= kIsingNotStates;
        state[c] = on ? 1.0f : down_;
      }
      states_.get()[p] = state;
    }
    return status;
  }

  void store() {
    for (int64_t p = 0; p < f_.units; ++p) {
      const FloatLanes state = states_.get()[p];
      for (int64_t c = 0; c < chains_here(); ++c)
        static_cast<E*>(f_.out)[(first_ + c) * f_.units + f_.order[p]] = bad_[c]            ? code_.nan
                                                                         : state[c] == 1.0f ? code_.up
                                                                                            : code_.down;
    }
  }

  const IsingGibbs& f_;
  const int64_t *start_, *from_;
  const float* weight_;
  const SpinCode<E> code_;
  const int64_t first_;
  Scratch<FloatLanes> states_;  // by place
  const float down_;
  FloatLanes beta_;
  WordLanes chain_;
  bool bad_[kLanes] = {};
};

}  // namespace

void ising_gibbs(const IsingGibbs& f) {
  *f.status = 0;
  if (f.n == 0 || f.units == 0) return;
  Places places(f);
  int32_t status = lay_out(f, places);
  if (status == 0) {
    dispatch_spins(f.state, f.spin, [&](auto code) {
      const int64_t groups = (f.n + kLanes - 1) / kLanes;
      const auto run = [&](int64_t begin, int64_t end) {
        for (int64_t g = begin; g < end; ++g) {
          const int32_t s = Group<decltype(code.up)>(f, places, code, g).run();
          if (s) __atomic_fetch_or(&status, s, __ATOMIC_RELAXED);
        }
      };
      if (groups >= 4)
        parallel_for(groups, 1, run);
      else
        run(0, groups);  // threads share a group
    });
  }
  *f.status = status;
}

}  // namespace GF_BACKEND
}  // namespace gf
