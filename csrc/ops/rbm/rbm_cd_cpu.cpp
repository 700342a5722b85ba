// A step of contrastive divergence of an RBM on the CPU. The states of data and chains are bits; their exact integer
// fields (gibbs.h) serve both the draws and P(h = 1 | v), and the gradient in W is one more sum of rows named by bits:
// row i adds w_n P_n of the rows n whose unit i is active, with w = -1 / n_data for data and 1 / n for chains.
#include <cmath>
#include <cstdint>

#include "common/parallel.h"
#include "common/real.h"
#include "ops/rbm/rbm.h"
#include "ops/rbm/rbm_bits.h"
#include "ops/rbm/rbm_energy_math.h"
#include "ops/rbm/rbm_quantise.h"
#include "ops/rbm/rbm_sweep.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

using P = Native<float>;
static_assert(P::size == kLanes, "fields become probabilities lane by lane");

GF_HD float* strip_row(float* p, int64_t words, int64_t unit, int64_t row) {
  return p + (unit / kRbmStrip * words * kRbmWord + row) * kRbmStrip + unit % kRbmStrip;
}

// The hidden units of rows of data or chains: P(h = 1 | v) is kept, and states are drawn where `out` is given.
struct HiddenSweep : RbmHalfSweep {
  static constexpr bool kChainLanes = false;
  float *p, *softplus;  // of the workspace; softplus null: not wanted
  int64_t words, row;   // words of rows, and the first row
  float weight;

  GF_HD void keep(const IntLanes* field, int64_t unit, int64_t chain) const {
    P sum(0.0f);
    for (int r = 0; r < 4; ++r) {
      const P x = P(VectorLane::to_float(field[r])) * P(scale);
      float* to = strip_row(p, words, unit + r * kLanes, row + chain);
      if (softplus) {
        const RbmUnit<P> u = rbm_unit(x);
        store_lanes(to, (u.p * P(weight)).v);
        const int left = static_cast<int>(n_out - unit - r * kLanes);
        for (int i = 0; i < kLanes; ++i) sum.set(i, sum[i] + (i < left ? u.softplus[i] : 0.0f));
      } else {
        store_lanes(to, (sigmoid(x) * P(weight)).v);
      }
    }
    if (softplus) softplus[unit / kRbmPanel * words * kRbmWord + row + chain] += gf::sum(sum);
  }
  GF_HD void set_word(int64_t group, int64_t word, WordLanes bits) const {
    if (out) RbmHalfSweep::set_word(group, word, bits);
  }
};

GF_HD uint64_t draw_units(const HiddenSweep& h, const IntLanes* field, int64_t unit, int64_t chain) {
  h.keep(field, unit, chain);
  return h.out ? gf::draw_units(static_cast<const RbmHalfSweep&>(h), field, unit, chain) : 0;
}

// The gradient in W: "chains" are visible units, whose bits are rows, and "weights" the weighted P of these.
struct GradientSums {
  using Lanes = FloatLanes;
  static constexpr bool kChainLanes = false;
  const uint32_t* in;
  int64_t in_words, out_words, in_stride, chains, n_out;
  const float *weights, *bias;
  float* grad;

  GF_HD void set_word(int64_t, int64_t, WordLanes) const {}
  GF_HD void store(P x, int64_t unit, int64_t row) const {
    const int64_t left = n_out - unit;
    if (left > 0) store_first(grad + row * n_out + unit, x, static_cast<int>(left < kLanes ? left : kLanes));
  }
};

GF_HD uint64_t draw_units(const GradientSums& h, const FloatLanes* field, int64_t unit, int64_t row) {
  for (int r = 0; r < 4; ++r) h.store(P(field[r]), unit + r * kLanes, row);
  return 0;
}

// Adding rows strip by strip: the rows of a strip stay in the first cache. Four sums hide the latency of an addition.
void sweep_rows(const GradientSums& h, int64_t group0, int64_t group1, int64_t panel0, int64_t panel1) {
  constexpr int kRegisters = kRbmStrip / kLanes;
  const int64_t units = h.in_words * kRbmWord;
  const int64_t end = group1 * kLanes < h.chains ? group1 * kLanes : h.chains;
  ActiveUnits active(end - group0 * kLanes, units);
  for (int64_t begin = group0 * kLanes; begin < end; begin += active.kChains) {
    const int64_t count = active.list(h, begin, end);
    for (int64_t unit = panel0 * kRbmPanel; unit < panel1 * kRbmPanel && unit < h.n_out; unit += kRbmStrip) {
      const float* rows = h.weights + unit * units;
      for (int64_t c = 0; c < count; ++c) {
        FloatLanes sum[4][kRegisters] = {};
        const uint32_t *i = active.begin(c), *last = active.begin(c + 1);
        const auto add = [&](int s, uint32_t row) {
          for (int r = 0; r < kRegisters; ++r) sum[s][r] += load_lanes<FloatLanes>(rows + row + r * kLanes);
        };
        for (; i + 4 <= last; i += 4)
          for (int s = 0; s < 4; ++s) add(s, i[s]);
        for (; i < last; ++i) add(0, *i);
        for (int r = 0; r < kRegisters; ++r)
          h.store(P((sum[0][r] + sum[1][r]) + (sum[2][r] + sum[3][r])), unit + r * kLanes, begin + c);
      }
    }
  }
}

// A row that is not all 0 and 1, as probabilities: bits are drawn. Returns whether each is one.
bool draw_row(const float* x, int64_t nv, uint32_t chain, uint32_t step, uint64_t seed, uint32_t* out) {
  bool good = true;
  for (int64_t i = 0; i < nv; i += 4) {
    const PhiloxWords<uint32_t> random =
        philox<uint32_t>(chain, static_cast<uint32_t>(i / 4), step, kStreamStart, seed);
    for (int64_t j = i; j < nv && j < i + 4; ++j) {
      good = good && x[j] >= 0.0f && x[j] <= 1.0f;
      const float u = rounded_add(rounded_mul(static_cast<float>(random.w[j - i] >> 1), 0x1p-31f), 0x1p-32f);
      out[j / kRbmWord * kLanes] |= static_cast<uint32_t>(u < x[j] || x[j] >= 1.0f) << (j % kRbmWord);
    }
  }
  return good;
}

// Rows as bits, in groups of kLanes; rows up to a multiple of 64 are 0.
int32_t load_rows(const RbmCd& f, const float* rows, int64_t n, bool draws, int64_t words, uint32_t* bits) {
  const StateCode<uint32_t> code{0x3f800000u, 0x7fc00000u, 0x80000000u};
  const int64_t nv = f.size.nv;
  int32_t status = 0;
  parallel_for((n + 63) / 64 * 64, 32, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      uint32_t* out = bits + c / kLanes * words * kLanes + c % kLanes;
      if (c >= n) {
        for (int64_t w = 0; w < words; ++w) out[w * kLanes] = 0;
        continue;
      }
      const float* x = rows + c * nv;
      uint32_t bad = 0;
      for (int64_t w = 0; w < words; ++w)
        out[w * kLanes] = word_width(nv, w) > 0 ? pack_word(reinterpret_cast<const uint32_t*>(x) + w * kRbmWord,
                                                            word_width(nv, w), code, bad)
                                                : 0;
      if (bad == 0) continue;
      int32_t s = kRbmNotBinary;
      if (draws) {
        for (int64_t w = 0; w < words; ++w) out[w * kLanes] = 0;
        const uint32_t chain = f.first_chain + static_cast<uint32_t>(c);
        s = draw_row(x, nv, chain, f.first_step, static_cast<uint64_t>(*f.seed), out) ? 0 : kRbmNotProbability;
      }
      if (s) __atomic_fetch_or(&status, s, __ATOMIC_RELAXED);
    }
  });
  return status;
}

// Bit j of word i becomes bit i of word j.
GF_HD void transpose_bits(uint32_t (&a)[32]) {
  uint32_t m = 0x0000ffffu;
  for (int j = 16; j != 0; j >>= 1, m ^= m << j) {
    for (int k = 0; k < 32; k = ((k | j) + 1) & ~j) {
      const uint32_t t = ((a[k] >> j) ^ a[k | j]) & m;
      a[k | j] ^= t;
      a[k] ^= t << j;
    }
  }
}

// The bits of n rows by unit: words [first, first + ceil(n / 32)) of the columns.
void bits_by_unit(const uint32_t* bits, int64_t n, int64_t state_words, uint32_t* columns, int64_t words,
                  int64_t first) {
  parallel_for(state_words, 4, [&](int64_t begin, int64_t end) {
    for (int64_t w = begin; w < end; ++w) {
      for (int64_t row = 0; row < n; row += 32) {
        uint32_t a[32];
        for (int64_t i = 0; i < 32; ++i) {
          const int64_t c = row + i;
          a[i] = c < n ? bits[(c / kLanes * state_words + w) * kLanes + c % kLanes] : 0;
        }
        transpose_bits(a);
        for (int64_t i = 0; i < 32; ++i) {
          const int64_t unit = w * kRbmWord + i;
          columns[(unit / kLanes * words + first + row / 32) * kLanes + unit % kLanes] = a[i];
        }
      }
    }
  });
}

// The gradients in the biases: sums over rows of states and of P.
void bias_gradients(const RbmCd& f, const RbmCdWorkspace& at, const uint32_t* columns, const float* p) {
  const float per_data = f.n_data > 0 ? 1.0f / static_cast<float>(f.n_data) : 0.0f;
  const float per_chain = 1.0f / static_cast<float>(f.size.n);
  for (int64_t i = 0; i < f.size.nv; ++i) {
    int64_t count[2] = {0, 0};
    const uint32_t* word = columns + i / kLanes * at.words * kLanes + i % kLanes;
    for (int64_t w = 0; w < at.words; ++w) count[w >= at.words_data] += __builtin_popcount(word[w * kLanes]);
    f.grad_vbias[i] = static_cast<float>(count[1]) * per_chain - static_cast<float>(count[0]) * per_data;
  }
  const int64_t first = at.words_data * kRbmWord;
  for (int64_t j = 0; j < f.size.nh; j += kRbmStrip) {
    double sum[kRbmStrip] = {};
    const auto add = [&](int64_t begin, int64_t end) {
      const float* x = strip_row(const_cast<float*>(p), at.words, j, 0);
      for (int64_t n = begin; n < end; ++n)
        for (int64_t i = 0; i < kRbmStrip; ++i) sum[i] += x[n * kRbmStrip + i];
    };
    add(0, f.n_data), add(first, first + f.size.n);
    for (int64_t i = 0; i < kRbmStrip && j + i < f.size.nh; ++i) f.grad_hbias[j + i] = static_cast<float>(sum[i]);
  }
}

// Mean F of the data less that of the chains, F = -a.v - sum softplus.
float contrast(const RbmCd& f, const RbmCdWorkspace& at, const float* softplus) {
  double total = 0, of_rows[2] = {0, 0};
  for (int64_t i = 0; i < f.size.nv; ++i) total += static_cast<double>(f.vbias[i]) * f.grad_vbias[i];
  const int64_t first = at.words_data * kRbmWord;
  for (int64_t panel = 0; panel < at.machine.panels_h; ++panel) {
    const float* x = softplus + panel * at.words * kRbmWord;
    for (int64_t n = 0; n < f.n_data; ++n) of_rows[0] += x[n];
    for (int64_t n = 0; n < f.size.n; ++n) of_rows[1] += x[first + n];
  }
  if (f.n_data > 0) total -= of_rows[0] / static_cast<double>(f.n_data);
  return static_cast<float>(total + of_rows[1] / static_cast<double>(f.size.n));
}

void fill(float* x, int64_t n, float value) {
  for (int64_t i = 0; i < n; ++i) x[i] = value;
}

}  // namespace

void rbm_cd(const RbmCd& f) {
  const RbmCdWorkspace at(f);
  const RbmWorkspace& machine = at.machine;
  const auto words_at = [&](int64_t offset) { return reinterpret_cast<uint32_t*>(f.workspace + offset); };
  const auto floats_at = [&](int64_t offset) { return reinterpret_cast<float*>(f.workspace + offset); };
  uint32_t *state_v = words_at(machine.state_v), *state_h = words_at(machine.state_h), *data = words_at(at.data);
  const int64_t words_v = 2 * machine.panels_v, words_h = 2 * machine.panels_h;
  *f.status = f.data ? load_rows(f, f.data, f.n_data, false, words_v, data) : 0;
  if (f.start) *f.status |= load_rows(f, f.start, f.size.n, f.draws, words_v, state_v);
  if (*f.status) return;

  RbmGibbs parameters{};
  parameters.size = f.size;
  parameters.W = f.W, parameters.vbias = f.vbias, parameters.hbias = f.hbias;
  parameters.workspace = f.workspace;
  const int e = rbm_quantise<float>(parameters, machine);
  if (e == INT32_MIN) {
    *f.status = kRbmNotFinite;
    const float nan = __builtin_nanf("");
    fill(f.out_v, f.size.n * f.size.nv, nan), fill(f.grad_W, f.size.nv * f.size.nh, nan);
    fill(f.grad_vbias, f.size.nv, nan), fill(f.grad_hbias, f.size.nh, nan);
    if (f.loss) *f.loss = nan;
    return;
  }
  // Rounding to multiples of 2^e leaves an error near 0.3 2^e sqrt(nv) in a field.
  const int64_t most = f.size.nv > f.size.nh ? f.size.nv : f.size.nh;
  if (e > 0 || static_cast<double>(power_of_two<float>(e)) * ::sqrt(static_cast<double>(most)) > 4e-5) {
    *f.status = kRbmCoarse;
    return;
  }

  float *p = floats_at(at.p), *softplus = f.loss ? floats_at(at.softplus) : nullptr;
  if (softplus) fill(softplus, machine.panels_h * at.words * kRbmWord, 0.0f);
  fill(floats_at(at.zeros), kRbmPanel * machine.panels_h, 0.0f);
  fill(floats_at(machine.beta), machine.chains, 1.0f);

  HiddenSweep up{};
  up.in_words = words_v, up.out_words = words_h;
  up.in_stride = words_v * kLanes, up.out_stride = words_h * kLanes;
  up.n_out = f.size.nh;
  up.weights = f.workspace + machine.weights_h, up.bias = f.workspace + machine.bias_h;
  up.beta = floats_at(machine.beta);
  up.scale = power_of_two<float>(e);
  up.seed = static_cast<uint64_t>(*f.seed);
  up.first_chain = f.first_chain, up.step = f.first_step, up.stream = kStreamRbmHidden;
  up.p = p, up.softplus = softplus;
  up.words = at.words;
  RbmHalfSweep down = up;
  down.in = state_h, down.out = state_v;
  down.in_words = words_h, down.out_words = words_v;
  down.in_stride = up.out_stride, down.out_stride = up.in_stride;
  down.n_out = f.size.nv, down.chains = f.size.n;
  down.weights = f.workspace + machine.weights_v, down.bias = f.workspace + machine.bias_v;
  down.stream = kStreamRbmVisible;
  const auto groups = [](int64_t n) { return (n + kLanes - 1) / kLanes; };
  const int64_t n_groups = groups(f.size.n);

  if (f.data) {  // where the chains start at the data, one pass serves both
    up.in = data;
    up.out = f.start ? nullptr : state_h;
    up.chains = f.n_data;
    up.weight = -1.0f / static_cast<float>(f.n_data);
    run_sweep(up, groups(f.n_data));
  }
  up.in = state_v;
  up.chains = f.size.n;
  RbmHalfSweep draw = up;
  draw.out = state_h;
  for (int64_t s = 0; s < f.n_steps; ++s) {
    draw.step = down.step = f.first_step + static_cast<uint32_t>(s);
    if (s > 0 || f.start) run_sweep(draw, n_groups);
    run_sweep(down, n_groups);
  }
  up.out = nullptr;
  up.weight = 1.0f / static_cast<float>(f.size.n);
  up.row = at.words_data * kRbmWord;
  run_sweep(up, n_groups);

  uint32_t* columns = words_at(at.columns);
  if (f.data) bits_by_unit(data, f.n_data, words_v, columns, at.words, 0);
  bits_by_unit(state_v, f.size.n, words_v, columns, at.words, at.words_data);
  GradientSums sums{};
  sums.in = columns, sums.in_words = at.words, sums.in_stride = at.words * kLanes;
  sums.chains = f.size.nv, sums.n_out = f.size.nh, sums.out_words = words_h;
  sums.weights = p, sums.bias = floats_at(at.zeros);
  sums.grad = f.grad_W;
  run_sweep(sums, groups(f.size.nv));
  bias_gradients(f, at, columns, p);
  if (f.loss) *f.loss = contrast(f, at, softplus);

  parallel_for(f.size.n, 32, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const uint32_t* in = state_v + c / kLanes * words_v * kLanes + c % kLanes;
      uint32_t* x = reinterpret_cast<uint32_t*>(f.out_v + c * f.size.nv);
      for (int64_t w = 0; w * kRbmWord < f.size.nv; ++w)
        unpack_word(x + w * kRbmWord, word_width(f.size.nv, w), in[w * kLanes], 0x3f800000u);
    }
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
