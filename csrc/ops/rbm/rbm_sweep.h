// Half a sweep of Gibbs sampling on the CPU: the states of one layer given those of the other.
//
// States are bits. A group is kLanes chains, and word w of a group is one register: lane c holds units 32 w ... 32 w +
// 31 of chain c. There are three ways to sum the weights of the active units, and all give the same integers:
//
// - rows, lanes are output units: the weight rows of the active input units are added, chain by chain.
// - sums, lanes are output units: the 16 sums of each four input units lie in the first cache, and each chain adds
// those
//   that its bits name: 4 * kLanes products in one instruction, for any density.
// - tables, lanes are chains (AVX-512): these 16 sums for one output unit are one register, and one permutation looks
//   them up for kLanes chains.
#pragma once

#include "common/gibbs.h"
#include "common/gibbs_lanes.h"
#include "common/parallel.h"
#include "common/philox.h"
#include "common/scratch.h"
#include "ops/rbm/rbm.h"

namespace gf {
inline namespace GF_BACKEND {

struct RbmHalfSweep {
  using Lanes = IntLanes;                    // of weights and fields
  static constexpr bool kChainLanes = true;  // accept_chains can be used
  const uint32_t* in;                        // [groups, in_words, kLanes]
  uint32_t* out;                             // [groups, out_words, kLanes]
  int64_t in_words, out_words;
  int64_t in_stride, out_stride;  // from group to group; more words than these where layers share a buffer
  int64_t n_out;                  // units of the output layer
  int64_t chains;                 // chains that exist
  const int32_t* weights;         // [2 out_words, 32 in_words, 16]
  const int32_t* bias;            // [32 out_words]
  const float* beta;              // [groups, kLanes]
  const uint32_t* clamp;          // [groups or 1, out_words, kLanes]; null: none
  int64_t clamp_stride;           // from group to group
  float scale;
  uint64_t seed;
  uint32_t first_chain, step, stream;

  // The new states, 0 or -1 a lane, of one unit of a group's chains, or of kLanes units of a chain, the first of which
  // is `unit`. The functions below take any H that is such a half sweep, so that another may draw otherwise.
  GF_HD IntLanes accept_chains(IntLanes field, FloatLanes inverse_temperature, WordLanes word, int64_t /* unit */,
                               int64_t /* group */) const {
    return gibbs_accept<VectorLane>(field, scale, inverse_temperature, word);
  }
  GF_HD IntLanes accept_units(IntLanes field, FloatLanes inverse_temperature, WordLanes word, int64_t /* unit */,
                              int64_t /* chain */) const {
    return gibbs_accept<VectorLane>(field, scale, inverse_temperature, word);
  }

  // Stores the new bits of one word, except for units that do not exist or are clamped.
  GF_HD void set_word(int64_t group, int64_t word, WordLanes bits) const {
    const int64_t left = n_out - word * kRbmWord;
    if (left < kRbmWord) bits &= left <= 0 ? 0u : (1u << left) - 1u;
    uint32_t* p = out + group * out_stride + word * kLanes;
    if (clamp) {
      const WordLanes held = load_lanes<WordLanes>(clamp + group * clamp_stride + word * kLanes);
      bits = (bits & ~held) | (load_lanes<WordLanes>(p) & held);
    }
    store_lanes(p, bits);
  }
};

// --- tables
// -----------------------------------------------------------------------------------------------------------

#if defined(__AVX512F__)

constexpr int kTablesPerWord = kRbmWord / kTableBits;
constexpr int kTileGroups = 4;  // groups that share the loads of a table

// Tables of a strip: tables[unit / 4][word][table of the word][unit % 4].
template <class H>
inline void build_tables(const H& h, int64_t strip, IntLanes* GF_RESTRICT tables) {
  const int64_t steps = h.in_words * kTablesPerWord;
  IntLanes takes[kTableBits];
  for (int b = 0; b < kTableBits; ++b) takes[b] = -(IntLanes)((lane_numbers() >> b) & 1u);
  const int32_t* GF_RESTRICT row = h.weights + strip * h.in_words * kRbmWord * kRbmStrip;
  for (int64_t word = 0; word < h.in_words; ++word) {
    for (int s = 0; s < kTablesPerWord; ++s) {
#pragma GCC unroll 16
      for (int j = 0; j < kRbmStrip; ++j) {
        IntLanes t = takes[0] & row[j];
        for (int b = 1; b < kTableBits; ++b) t += takes[b] & row[b * kRbmStrip + j];
        tables[(j / 4) * steps * 4 + j % 4] = t;
      }
      row += kTableBits * kRbmStrip;
      tables += 4;
    }
  }
}

// Draws four units (one Philox block) of kGroups groups; bits go to place `shift` of words[group][0].
template <int kGroups, class H>
GF_HD void four_units(const H& h, const IntLanes* GF_RESTRICT tables, int64_t unit, int64_t group,
                      WordLanes (*GF_RESTRICT words)[2]) {
  IntLanes field[4][kGroups];
  for (int u = 0; u < 4; ++u)
    for (int g = 0; g < kGroups; ++g) field[u][g] = IntLanes{} + h.bias[unit + u];
  const uint32_t* in = h.in + group * h.in_stride;
  for (int64_t word = 0; word < h.in_words; ++word) {
    WordLanes code[kGroups];
    for (int g = 0; g < kGroups; ++g) code[g] = load_lanes<WordLanes>(in + g * h.in_stride + word * kLanes);
#pragma GCC unroll 11
    for (int s = 0; s < kTablesPerWord; ++s) {
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        const IntLanes table = tables[s * 4 + u];
#pragma GCC unroll 4
        for (int g = 0; g < kGroups; ++g) field[u][g] += look_up(table, code[g]);
      }
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) code[g] >>= kTableBits;
    }
    tables += 4 * kTablesPerWord;
  }
  const int half = static_cast<int>(unit / kRbmWord % 2), shift = static_cast<int>(unit % kRbmWord);
  for (int g = 0; g < kGroups; ++g) {
    const WordLanes chain = lane_numbers() + (h.first_chain + static_cast<uint32_t>((group + g) * kLanes));
    const PhiloxWords<WordLanes> random =
        philox(chain, WordLanes{} + static_cast<uint32_t>(unit / 4), h.step, h.stream, h.seed);
    const FloatLanes beta = load_lanes<FloatLanes>(h.beta + (group + g) * kLanes);
    WordLanes bits{};
    for (int u = 0; u < 4; ++u)
      bits |= (WordLanes)h.accept_chains(field[u][g], beta, random.w[u], unit + u, group + g) & (1u << (shift + u));
    words[g][half] |= bits;
  }
}

template <class H>
inline void sweep_tables(const H& h, int64_t group0, int64_t group1, int64_t panel0, int64_t panel1) {
  const int64_t steps = h.in_words * kTablesPerWord;
  Scratch<IntLanes> tables(kRbmStrip * steps);
  Scratch<WordLanes[2]> words(group1 - group0);
  for (int64_t panel = panel0; panel < panel1; ++panel) {
    for (int64_t g = 0; g < group1 - group0; ++g) words.get()[g][0] = words.get()[g][1] = WordLanes{};
    for (int64_t first = panel * kRbmPanel; first < (panel + 1) * kRbmPanel && first < h.n_out; first += kRbmStrip) {
      build_tables(h, first / kRbmStrip, tables.get());
      for (int64_t j = 0; j < kRbmStrip; j += 4) {
        const int64_t unit = first + j;
        const IntLanes* t = tables.get() + j * steps;
        int64_t g = group0;
        for (; g + kTileGroups <= group1; g += kTileGroups)
          four_units<kTileGroups>(h, t, unit, g, words.get() + (g - group0));
        for (; g + 2 <= group1; g += 2) four_units<2>(h, t, unit, g, words.get() + (g - group0));
        for (; g < group1; ++g) four_units<1>(h, t, unit, g, words.get() + (g - group0));
      }
    }
    for (int64_t g = group0; g < group1; ++g)
      for (int i = 0; i < 2; ++i) h.set_word(g, 2 * panel + i, words.get()[g - group0][i]);
  }
}

#endif

// --- lanes are output units
// --------------------------------------------------------------------------------------------

constexpr int kDrawn = 4 * kLanes;  // units that a chain draws at once: a block of random words is four of them

// Draws kDrawn units of one chain from their fields and returns their bits.
template <class H>
GF_HD uint64_t draw_units(const H& h, const IntLanes* field, int64_t unit, int64_t chain) {
  const FloatLanes beta = VectorLane::splat(h.beta[chain]);
  const WordLanes number = WordLanes{} + (h.first_chain + static_cast<uint32_t>(chain));
  PhiloxWords<WordLanes> random =
      philox(number, lane_numbers() + static_cast<uint32_t>(unit / 4), h.step, h.stream, h.seed);
  in_unit_order(random.w);
  uint64_t bits = 0;
  for (int r = 0; r < 4; ++r)
    bits |= static_cast<uint64_t>(lane_bits(h.accept_units(field[r], beta, random.w[r], unit + r * kLanes, chain)))
            << (r * kLanes);
  return bits;
}

// Stores the new bits of a panel of the chains from `begin`, a multiple of kLanes.
template <class H>
GF_HD void set_panel(const H& h, int64_t begin, int64_t count, int64_t panel, const uint64_t* bits) {
  for (int64_t c = 0; c < count; c += kLanes) {
    WordLanes words[2] = {};
    for (int lane = 0; lane < kLanes && c + lane < count; ++lane) {
      words[0][lane] = static_cast<uint32_t>(bits[c + lane]);
      words[1][lane] = static_cast<uint32_t>(bits[c + lane] >> 32);
    }
    for (int i = 0; i < 2; ++i) h.set_word((begin + c) / kLanes, 2 * panel + i, words[i]);
  }
}

// Where the lanes of register r of a row of weights lie: strips are `strip` apart.
GF_HD int64_t in_strips(int64_t r, int64_t strip) { return r * kLanes / kRbmStrip * strip + r * kLanes % kRbmStrip; }

// Where the rows of the active input units of a block of chains lie in a strip of weights.
class ActiveUnits {
 public:
  static constexpr int64_t kChains = 256;
  ActiveUnits(int64_t chains, int64_t units) : lists_((chains < kChains ? chains : kChains) * units) {}

  // Lists those of the chains [begin, end), at most kChains, and returns how many chains these are.
  template <class H>
  int64_t list(const H& h, int64_t begin, int64_t end) {
    const int64_t count = end - begin < kChains ? end - begin : kChains;
    uint32_t* list = lists_.get();
    for (int64_t c = 0; c < count; ++c) {
      start_[c] = list;
      const int64_t chain = begin + c;
      const uint32_t* words = h.in + chain / kLanes * h.in_stride + chain % kLanes;
      for (int64_t w = 0; w < h.in_words; ++w)
        for (uint32_t bits = words[w * kLanes]; bits; bits &= bits - 1)
          *list++ = static_cast<uint32_t>((w * kRbmWord + __builtin_ctz(bits)) * kRbmStrip);
    }
    start_[count] = list;
    return count;
  }
  const uint32_t* begin(int64_t chain) const { return start_[chain]; }

 private:
  Scratch<uint32_t> lists_;
  const uint32_t* start_[kChains + 1];
};

template <class H>
inline void sweep_rows(const H& h, int64_t group0, int64_t group1, int64_t panel0, int64_t panel1) {
  using V = typename H::Lanes;
  constexpr int kPart = 2 * kDrawn < kRbmPanel ? 2 * kDrawn : kRbmPanel;  // output units that are summed at once
  constexpr int kRegisters = kPart / kLanes;
  const int64_t units = h.in_words * kRbmWord;
  const int64_t end = group1 * kLanes < h.chains ? group1 * kLanes : h.chains;
  ActiveUnits active(end - group0 * kLanes, units);
  uint64_t drawn[ActiveUnits::kChains];
  for (int64_t begin = group0 * kLanes; begin < end; begin += active.kChains) {
    const int64_t count = active.list(h, begin, end);
    for (int64_t panel = panel0; panel < panel1; ++panel) {
      for (int64_t c = 0; c < count; ++c) {
        drawn[c] = 0;
        for (int part = 0; part < kRbmPanel; part += kPart) {
          const int64_t unit = panel * kRbmPanel + part;
          constexpr int kStrips = kPart / kRbmStrip, kEach = kRbmStrip / kLanes;  // registers of a strip
          decltype(h.weights) rows[kStrips];
          for (int i = 0; i < kStrips; ++i) rows[i] = h.weights + (unit + i * kRbmStrip) * units;
          V field[kRegisters];
          for (int r = 0; r < kRegisters; ++r) field[r] = load_lanes<V>(h.bias + unit + r * kLanes);
          for (const uint32_t* i = active.begin(c); i < active.begin(c + 1); ++i) {
#pragma GCC unroll 8
            for (int r = 0; r < kRegisters; ++r) field[r] += load_lanes<V>(rows[r / kEach] + *i + r % kEach * kLanes);
          }
          for (int r = 0; r < kRegisters; r += 4)
            drawn[c] |= draw_units(h, field + r, unit + r * kLanes, begin + c) << (part + r * kLanes);
        }
      }
      set_panel(h, begin, count, panel, drawn);
    }
  }
}

// The 16 sums of each four input units of a tile, for kDrawn output units: at most 16 KB.
constexpr int kTileSums = kVectorBytes == 64 ? 4 : 8, kTileUnits = 4 * kTileSums;
template <class V>
struct FourUnits {
  V sum[16][4];
};

template <class V, class T>
GF_HD void build_sums(const T* GF_RESTRICT rows, int64_t strip, FourUnits<V>* GF_RESTRICT tile) {
  for (int g = 0; g < kTileSums; ++g) {
    for (int r = 0; r < 4; ++r) {
      V unit[4];
      for (int b = 0; b < 4; ++b) unit[b] = load_lanes<V>(rows + (4 * g + b) * kRbmStrip + in_strips(r, strip));
      tile[g].sum[0][r] = V{};
#pragma GCC unroll 4
      for (int b = 0; b < 4; ++b)
#pragma GCC unroll 8
        for (int i = 0; i < 1 << b; ++i) tile[g].sum[(1 << b) + i][r] = tile[g].sum[i][r] + unit[b];
    }
  }
}

template <class H>
inline void sweep_sums(const H& h, int64_t group0, int64_t group1, int64_t panel0, int64_t panel1) {
  using V = typename H::Lanes;
  constexpr int64_t kChains = 4096 / kVectorBytes;  // their fields take 16 KB too
  const int64_t end = group1 * kLanes < h.chains ? group1 * kLanes : h.chains;
  const int64_t units = h.in_words * kRbmWord, strip = units * kRbmStrip, tiles = units / kTileUnits;
  Scratch<V[4]> fields(kChains);
  Scratch<FourUnits<V>> tables(kTileSums);
  FourUnits<V>* tile = tables.get();
  uint64_t drawn[kChains];
  for (int64_t begin = group0 * kLanes; begin < end; begin += kChains) {
    const int64_t count = end - begin < kChains ? end - begin : kChains;
    for (int64_t panel = panel0; panel < panel1; ++panel) {
      for (int64_t c = 0; c < count; ++c) drawn[c] = 0;
      for (int part = 0; part < kRbmPanel; part += kDrawn) {
        const int64_t unit = panel * kRbmPanel + part;
        const auto* rows = h.weights + unit / kRbmStrip * strip + unit % kRbmStrip;
        V bias[4];
        for (int r = 0; r < 4; ++r) bias[r] = load_lanes<V>(h.bias + unit + r * kLanes);
        for (int64_t t = 0; t < tiles; ++t) {
          build_sums(rows + t * kTileUnits * kRbmStrip, strip, tile);
          const int64_t word = t * kTileUnits / kRbmWord;
          const int shift = static_cast<int>(t * kTileUnits % kRbmWord);
          for (int64_t c = 0; c < count; ++c) {
            const int64_t chain = begin + c;
            const uint32_t code = h.in[chain / kLanes * h.in_stride + word * kLanes + chain % kLanes] >> shift;
            V field[4];
            for (int r = 0; r < 4; ++r) field[r] = t == 0 ? bias[r] : fields.get()[c][r];
#pragma GCC unroll 8
            for (int g = 0; g < kTileSums; ++g)
              for (int r = 0; r < 4; ++r) field[r] += tile[g].sum[code >> (4 * g) & 15u][r];
            if (t == tiles - 1)
              drawn[c] |= draw_units(h, field, unit, chain) << part;
            else
              for (int r = 0; r < 4; ++r) fields.get()[c][r] = field[r];
          }
        }
      }
      set_panel(h, begin, count, panel, drawn);
    }
  }
}

// The share of active units in the groups [group0, group1).
template <class H>
inline double density(const H& h, int64_t group0, int64_t group1) {
  int64_t on = 0;
  const int64_t count = h.in_words * kLanes;
  for (int64_t group = group0; group < group1; ++group)
    for (int64_t i = 0; i < count; ++i) on += __builtin_popcount(h.in[group * h.in_stride + i]);
  return static_cast<double>(on) / static_cast<double>((group1 - group0) * count * kRbmWord);
}

// Whether adding rows is the fastest way for so many chains with this share of active units (measured): few chains
// share the work of building sums.
inline bool few_active(int64_t chains, double density) {
  int halvings = 0;
  for (int64_t n = 2048; n > chains && n > 1; n /= 2) ++halvings;
  return density < 0.14 + 0.015 * halvings;
}

template <class H>
inline void sweep(const H& h, int64_t group0, int64_t group1, int64_t panel0, int64_t panel1) {
  const int64_t chains = (group1 - group0) * kLanes;
  if (few_active(chains, density(h, group0, group1))) return sweep_rows(h, group0, group1, panel0, panel1);
#if defined(__AVX512F__)
  if constexpr (H::kChainLanes)
    if (chains > 128) return sweep_tables(h, group0, group1, panel0, panel1);
#endif
  sweep_sums(h, group0, group1, panel0, panel1);
}

// Cuts a half sweep into tasks: blocks of chains, and panels of units where there are few chains. also(i, n) does part
// i of n of what else can be done meanwhile.
template <class H, class Also>
inline void run_sweep(const H& h, int64_t groups, Also&& also) {
  constexpr int64_t kBlockGroups = 1024 / kLanes, kTasks = 8;
  const int64_t blocks = (groups + kBlockGroups - 1) / kBlockGroups, panels = h.out_words / 2;
  int64_t cuts = (kTasks + blocks - 1) / blocks;
  cuts = cuts < panels ? cuts : panels;
  parallel_for(blocks * cuts, 1, [&](int64_t task, int64_t) {
    const int64_t block = task / cuts, cut = task % cuts, group = block * kBlockGroups;
    const int64_t end = group + kBlockGroups < groups ? group + kBlockGroups : groups;
    sweep(h, group, end, panels * cut / cuts, panels * (cut + 1) / cuts);
    also(task, blocks * cuts);
  });
}
template <class H>
inline void run_sweep(const H& h, int64_t groups) {
  run_sweep(h, groups, [](int64_t, int64_t) {});
}

}  // namespace GF_BACKEND
}  // namespace gf
