// Annealed importance sampling of an RBM on the CPU. A run is a chain of rbm_sweep.h, and the fields of the hidden
// units serve both the weight of a step and the draw behind it.
#include <cstring>

#include "common/parallel.h"
#include "ops/rbm/rbm_bits.h"
#include "ops/rbm/rbm_quantise.h"
#include "ops/rbm/rbm_sweep.h"
#include "ops/rbm_ais/rbm_ais.h"
#include "ops/rbm_ais/rbm_ais_math.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

GF_HD int32_t lane_sum(IntLanes v) {
#if defined(__AVX512F__)
  return _mm512_mask_reduce_add_epi32(0xffff, (__m512i)v);
#elif defined(__AVX2__)
  __m128i x = _mm_add_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
  x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
#else
  int32_t total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
#endif
}

// A half sweep that keeps its fields. From step to step few units change in a machine that has learned, and integers
// allow to add and subtract their rows alone: the fields are the same.
struct KeptSweep : RbmHalfSweep {
  static constexpr bool kChainLanes = false;  // fields are kept chain by chain
  int32_t* fields;                            // [panels, kept chains, 64]
  const uint32_t* before;                     // `in` of the step before; null: there is none
  int64_t kept;

  GF_HD int32_t* fields_of(int64_t unit, int64_t chain) const {
    return fields + (unit / kRbmPanel * kept + chain) * kRbmPanel + unit % kRbmPanel;
  }
};

// Hidden units. Sums of 64 numbers of 31 bits are kept as those of their low and high halves, which int32 holds.
struct HiddenSweep : KeptSweep {
  float beta0, difference;
  int32_t* sums;  // [panels, kept chains, 2, kLanes]

  GF_HD int32_t* sums_of(int64_t panel, int64_t chain) const { return sums + (panel * kept + chain) * 2 * kLanes; }

  GF_HD IntLanes accept_units(IntLanes field, FloatLanes beta1, WordLanes word, int64_t unit, int64_t chain) const {
    const FloatLanes z = (VectorLane::to_float(field) * scale) * beta1, t = odds_against<VectorLane>(z);
    const IntLanes y = ais_increment<VectorLane>(field, scale, t, beta0, difference);
    int32_t* low = sums_of(unit / kRbmPanel, chain);
    const bool first = unit % kRbmPanel == 0;
    const IntLanes so_far[2] = {first ? IntLanes{} : load_lanes<IntLanes>(low),
                                first ? IntLanes{} : load_lanes<IntLanes>(low + kLanes)};
    store_lanes(low, so_far[0] + (y & 0xffff));
    store_lanes(low + kLanes, so_far[1] + (y >> 16));
    store_lanes(fields_of(unit, chain), field);
    return gibbs_accept_logit<VectorLane>(z, t, word);
  }
};

struct VisibleSweep : KeptSweep {
  const float* offset;

  GF_HD IntLanes accept_units(IntLanes field, FloatLanes beta1, WordLanes word, int64_t unit, int64_t chain) const {
    const FloatLanes z = ais_visible_logit<VectorLane>(field, scale, beta1, load_lanes<FloatLanes>(offset + unit));
    store_lanes(fields_of(unit, chain), field);
    return gibbs_accept_logit<VectorLane>(z, odds_against<VectorLane>(z), word);
  }
};

// As sweep_rows, from the fields of the step before and the rows of the units that changed.
template <class H>
void sweep_changes(const H& h, int64_t group0, int64_t group1, int64_t panel0, int64_t panel1) {
  constexpr int64_t kChains = 64;
  constexpr int kPart = 2 * kDrawn < kRbmPanel ? 2 * kDrawn : kRbmPanel, kRegisters = kPart / kLanes;
  const int64_t units = h.in_words * kRbmWord, strip = units * kRbmStrip;
  const int64_t end = group1 * kLanes < h.chains ? group1 * kLanes : h.chains;
  Scratch<uint32_t> lists(kChains * units);
  int64_t start[2 * kChains + 1];  // of the units that became 1, and of those that became 0, for each chain
  uint64_t drawn[kChains];
  for (int64_t begin = group0 * kLanes; begin < end; begin += kChains) {
    const int64_t count = end - begin < kChains ? end - begin : kChains;
    uint32_t* list = lists.get();
    for (int64_t k = 0; k < 2 * count; ++k) {
      start[k] = list - lists.get();
      const int64_t chain = begin + k / 2, at = chain / kLanes * h.in_stride + chain % kLanes;
      for (int64_t w = 0; w < h.in_words; ++w) {
        const uint32_t now = h.in[at + w * kLanes], old = h.before[at + w * kLanes];
        for (uint32_t bits = k % 2 == 0 ? now & ~old : old & ~now; bits; bits &= bits - 1)
          *list++ = static_cast<uint32_t>(w * kRbmWord + __builtin_ctz(bits));
      }
    }
    start[2 * count] = list - lists.get();
    for (int64_t panel = panel0; panel < panel1; ++panel) {
      for (int64_t c = 0; c < count; ++c) {
        drawn[c] = 0;
        for (int part = 0; part < kRbmPanel; part += kPart) {
          const int64_t unit = panel * kRbmPanel + part;
          const int32_t* rows = h.weights + unit * units;
          const int32_t* kept = h.fields_of(unit, begin + c);
          IntLanes field[kRegisters];
          for (int r = 0; r < kRegisters; ++r) field[r] = load_lanes<IntLanes>(kept + r * kLanes);
          for (int64_t i = start[2 * c]; i < start[2 * c + 1]; ++i) {
            const int32_t* row = rows + static_cast<int64_t>(lists.get()[i]) * kRbmStrip;
#pragma GCC unroll 8
            for (int r = 0; r < kRegisters; ++r) field[r] += load_lanes<IntLanes>(row + in_strips(r, strip));
          }
          for (int64_t i = start[2 * c + 1]; i < start[2 * c + 2]; ++i) {
            const int32_t* row = rows + static_cast<int64_t>(lists.get()[i]) * kRbmStrip;
#pragma GCC unroll 8
            for (int r = 0; r < kRegisters; ++r) field[r] -= load_lanes<IntLanes>(row + in_strips(r, strip));
          }
          for (int r = 0; r < kRegisters; r += 4)
            drawn[c] |= draw_units(h, field + r, unit + r * kLanes, begin + c) << (part + r * kLanes);
        }
      }
      set_panel(h, begin, count, panel, drawn);
    }
  }
}

// Whether fewer rows change than would be added, or than sums of four units be looked up (measured).
inline bool few_changes(const KeptSweep& h, int64_t group0, int64_t group1) {
  if (!h.before) return false;
  int64_t changed = 0, active = 0;
  const int64_t count = h.in_words * kLanes;
  for (int64_t group = group0; group < group1; ++group) {
    for (int64_t i = group * h.in_stride; i < group * h.in_stride + count; ++i) {
      changed += __builtin_popcount(h.in[i] ^ h.before[i]);
      active += __builtin_popcount(h.in[i]);
    }
  }
  return 2 * changed < active && 8 * changed < (group1 - group0) * count * kRbmWord;
}

// What run_sweep calls for these.
template <class H>
void sweep_kept(const H& h, int64_t group0, int64_t group1, int64_t panel0, int64_t panel1) {
  if (few_changes(h, group0, group1)) return sweep_changes(h, group0, group1, panel0, panel1);
  sweep<H>(h, group0, group1, panel0, panel1);
}
void sweep(const HiddenSweep& h, int64_t group0, int64_t group1, int64_t panel0, int64_t panel1) {
  sweep_kept(h, group0, group1, panel0, panel1);
}
void sweep(const VisibleSweep& h, int64_t group0, int64_t group1, int64_t panel0, int64_t panel1) {
  sweep_kept(h, group0, group1, panel0, panel1);
}

// Runs [begin, end) as bits; those that do not exist are 0.
template <class E>
void load_runs(const RbmAis& f, const RbmAisWorkspace& at, const StateCode<E>& code, int64_t begin, int64_t end) {
  const int64_t words = 2 * at.panels_v, nv = f.size.nv;
  E bad = 0;
  for (int64_t r = begin; r < end; ++r) {
    uint32_t* out = reinterpret_cast<uint32_t*>(f.workspace + at.state_v) + r / kLanes * words * kLanes + r % kLanes;
    const E* in = static_cast<const E*>(f.v) + r * nv;
    for (int64_t w = 0; w < words; ++w)
      out[w * kLanes] = r < f.size.n ? pack_word(in + w * kRbmWord, word_width(nv, w), code, bad) : 0;
  }
}

template <class E>
void store_runs(const RbmAis& f, const RbmAisWorkspace& at, const StateCode<E>& code, bool lost, int64_t begin,
                int64_t end) {
  const int64_t words = 2 * at.panels_v, nv = f.size.nv;
  for (int64_t r = begin; r < end; ++r) {
    const int32_t* in = f.workspace + at.state_v + r / kLanes * words * kLanes + r % kLanes;
    E* out = static_cast<E*>(f.out_v) + r * nv;
    for (int64_t w = 0; w * kRbmWord < nv; ++w)
      unpack_word(out + w * kRbmWord, word_width(nv, w), lost ? ~0u : static_cast<uint32_t>(in[w * kLanes]),
                  lost ? code.nan : code.one);
  }
}

// The slope summed over the active units of run r.
int64_t slope_of(const RbmAis& f, const RbmAisWorkspace& at, int64_t r) {
  const int64_t words = 2 * at.panels_v;
  const uint32_t* in =
      reinterpret_cast<const uint32_t*>(f.workspace + at.state_v) + r / kLanes * words * kLanes + r % kLanes;
  int64_t total = 0;
  for (int64_t w = 0; w < words; ++w)
    for (uint32_t bits = in [w * kLanes]; bits; bits &= bits - 1) total += f.slope[w * kRbmWord + __builtin_ctz(bits)];
  return total;
}

void follow(const RbmAis& f, const RbmAisWorkspace& at, int e) {
  const int64_t groups = (f.size.n + kLanes - 1) / kLanes, chains = groups * kLanes;
  float* beta = reinterpret_cast<float*>(f.workspace + at.beta);
  float* offset = reinterpret_cast<float*>(f.workspace + at.offset);
  int32_t* sums = f.workspace + at.sums;
  int64_t* slopes = reinterpret_cast<int64_t*>(f.workspace + at.slopes);

  HiddenSweep up{};
  up.in = reinterpret_cast<uint32_t*>(f.workspace + at.state_v);
  up.out = reinterpret_cast<uint32_t*>(f.workspace + at.state_h);
  up.in_words = 2 * at.panels_v;
  up.out_words = 2 * at.panels_h;
  up.in_stride = up.in_words * kLanes;
  up.out_stride = up.out_words * kLanes;
  up.n_out = f.size.nh;
  up.chains = f.size.n;
  up.weights = f.workspace + at.weights_h;
  up.bias = f.workspace + at.bias_h;
  up.beta = beta;
  up.scale = ais_scale(e);
  up.seed = static_cast<uint64_t>(*f.seed);
  up.first_chain = f.first_run;
  up.stream = kStreamAisHidden;
  up.sums = sums;
  up.fields = f.workspace + at.fields_h;
  up.kept = chains;
  VisibleSweep down{};
  static_cast<KeptSweep&>(down) = up;
  down.fields = f.workspace + at.fields_v;
  down.in = up.out;
  down.out = reinterpret_cast<uint32_t*>(f.workspace + at.state_v);
  down.in_words = up.out_words;
  down.out_words = up.in_words;
  down.in_stride = up.out_stride;
  down.out_stride = up.in_stride;
  down.n_out = f.size.nv;
  down.weights = f.workspace + at.weights_v;
  down.bias = f.workspace + at.bias_v;
  down.stream = kStreamAisVisible;
  down.offset = offset;

  uint32_t* before_v = reinterpret_cast<uint32_t*>(f.workspace + at.before_v);
  uint32_t* before_h = reinterpret_cast<uint32_t*>(f.workspace + at.before_h);
  const double unit = power_of_two<double>(e + 1);
  for (int64_t i = f.size.nv; i < kRbmPanel * at.panels_v; ++i) offset[i] = 0;
  for (int64_t s = 0; s < f.n_steps; ++s) {
    const float beta0 = f.betas[s], beta1 = f.next_betas[s], rest = 1.0f - beta1;
    for (int64_t r = 0; r < chains; ++r) beta[r] = beta1;
    for (int64_t i = 0; i < f.size.nv; ++i) offset[i] = rest * f.base[i];
    up.step = down.step = f.first_step + static_cast<uint32_t>(s);
    up.beta0 = beta0;
    up.difference = beta1 - beta0;
    if (s > 0) up.before = before_v;
    run_sweep(up, groups, [&](int64_t part, int64_t parts) {
      for (int64_t r = f.size.n * part / parts; r < f.size.n * (part + 1) / parts; ++r) slopes[r] = slope_of(f, at, r);
    });
    memcpy(before_v, up.in, sizeof(uint32_t) * static_cast<std::size_t>(groups * up.in_stride));
    const double d = static_cast<double>(beta1) - static_cast<double>(beta0);
    for (int64_t r = 0; r < f.size.n; ++r) {
      int64_t sum = 0;
      for (int64_t p = 0; p < at.panels_h; ++p) {
        const int32_t* low = up.sums_of(p, r);
        sum += lane_sum(load_lanes<IntLanes>(low)) +
               static_cast<int64_t>(lane_sum(load_lanes<IntLanes>(low + kLanes))) * 65536;
      }
      f.out_log_weights[r] = ais_log_weight(f.out_log_weights[r], d, sum, unit, slopes[r], f.slope_unit);
    }
    if (s > 0) down.before = before_h;
    run_sweep(down, groups);
    memcpy(before_h, down.in, sizeof(uint32_t) * static_cast<std::size_t>(groups * down.in_stride));
  }
}

}  // namespace

void rbm_ais(const RbmAis& f) {
  if (f.size.n == 0) return;
  const RbmAisWorkspace at(f.size);
  RbmGibbs machine{};
  machine.size = f.size;
  machine.W = f.W;
  machine.vbias = f.vbias;
  machine.hbias = f.hbias;
  machine.workspace = f.workspace;
  const int e = f.dtype == DType::f64 ? rbm_quantise<double>(machine, at) : rbm_quantise<float>(machine, at);
  const bool lost = e == INT32_MIN;
  for (int64_t r = 0; r < f.size.n; ++r)
    f.out_log_weights[r] = lost ? __builtin_nan("") : f.log_weights ? f.log_weights[r] : 0.0;
  dispatch_wide_state(f.dtype, [&](auto code) {
    parallel_for(at.chains, 64, [&](int64_t begin, int64_t end) { load_runs(f, at, code, begin, end); });
    if (!lost) follow(f, at, e);
    parallel_for(f.size.n, 64, [&](int64_t begin, int64_t end) { store_runs(f, at, code, lost, begin, end); });
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
