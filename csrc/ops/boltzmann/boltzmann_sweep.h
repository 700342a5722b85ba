// Sequential Gibbs sampling of a general Boltzmann machine on the CPU.
//
// Every chain keeps the integer fields of all its units, and a turned unit changes them by a row of weights. Sums of
// integers are exact, so they may come in any order. Units are visited in blocks of 32, in two steps:
//
// - draw: lanes are chains. The block's fields are transposed into registers, and its units drawn one after another,
//   each with what the units before it in the block change.
// - add: lanes are units. The rows of the units that were turned are added to the fields of all units, chain by chain.
//   Near equilibrium few are, so this costs far less than a product with the states.
//
// All chains of a task pass a block before the next one comes: its 32 rows stay in the cache.
#pragma once

#include "common/gibbs.h"
#include "common/gibbs_lanes.h"
#include "common/philox.h"
#include "common/scratch.h"
#include "ops/boltzmann/boltzmann.h"
#include "ops/boltzmann/boltzmann_states.h"

namespace gf {
inline namespace GF_BACKEND {

constexpr int kUnitBlock = 32;  // a word of states

// The chains of a task, in groups of kLanes: word w of a group is one register, lane c holds units 32 w ... 32 w + 31
// of chain c.
struct BoltzmannChains {
  int64_t d, stride, words, groups;
  const int32_t* rows;   // [d, stride]
  int32_t* fields;       // [groups, kLanes, stride]
  uint32_t* state;       // [groups, words, kLanes]
  const uint32_t* held;  // [groups or 1, words, kLanes]: clamped units; null: none
  int64_t held_stride;
  const float* beta;  // [groups, kLanes]
  WordLanes exist;    // of the last group: all bits where there is a chain
  float scale;
  uint64_t seed;
  uint32_t first_chain;
};

// The units that are visited together: unit[i] is their i-th, position + i its place in the order.
struct UnitBlock {
  int64_t position, word;  // the word is theirs where they are in its order, else -1
  int count;
  uint32_t step;
  float beta;  // of the sweep
  const int32_t* unit;
  int32_t row[kUnitBlock];               // where their rows start in a panel
  int32_t pair[kUnitBlock][kUnitBlock];  // pair[j][i]: the weight of unit i in the field of unit j
};

inline void set_block(const BoltzmannChains& f, const int32_t* order, int64_t position, bool in_order, UnitBlock& b) {
  b.position = position;
  b.word = in_order ? position / kUnitBlock : -1;
  b.count = static_cast<int>(f.d - position < kUnitBlock ? f.d - position : kUnitBlock);
  b.unit = order + position;
  for (int i = 0; i < b.count; ++i) b.row[i] = b.unit[i] * static_cast<int32_t>(kBoltzmannPanel);
  for (int j = 0; j < b.count; ++j) {
    const int32_t* row = f.rows + b.row[j];
    for (int i = 0; i < b.count; ++i) {
      const int64_t unit = b.unit[i];
      b.pair[j][i] = row[unit / kBoltzmannPanel * kBoltzmannPanel * f.d + unit % kBoltzmannPanel];
    }
  }
}

// The bits of a block's units in a group's words, and back.
GF_HD WordLanes gather_bits(const uint32_t* words, const UnitBlock& b) {
  if (b.word >= 0) return load_lanes<WordLanes>(words + b.word * kLanes);
  WordLanes bits{};
  for (int i = 0; i < b.count; ++i) {
    const WordLanes w = load_lanes<WordLanes>(words + b.unit[i] / kUnitBlock * kLanes);
    bits |= (w >> static_cast<uint32_t>(b.unit[i] % kUnitBlock) & 1u) << static_cast<uint32_t>(i);
  }
  return bits;
}

GF_HD void flip_bits(uint32_t* words, const UnitBlock& b, WordLanes flips) {
  if (b.word >= 0) {
    uint32_t* w = words + b.word * kLanes;
    return store_lanes(w, load_lanes<WordLanes>(w) ^ flips);
  }
  for (int i = 0; i < b.count; ++i) {
    uint32_t* w = words + b.unit[i] / kUnitBlock * kLanes;
    const WordLanes bit = (flips >> static_cast<uint32_t>(i) & 1u) << static_cast<uint32_t>(b.unit[i] % kUnitBlock);
    store_lanes(w, load_lanes<WordLanes>(w) ^ bit);
  }
}

// weight * sign, for signs -1, 0 and 1.
GF_HD IntLanes signed_weight(int32_t weight, IntLanes sign) {
#if defined(__AVX512F__)
  return sign * weight;
#elif defined(__AVX2__)
  return (IntLanes)_mm256_sign_epi32(_mm256_set1_epi32(weight), (__m256i)sign);
#else
  const IntLanes negative = sign >> 31;
  return ((weight ^ negative) - negative) & (IntLanes)(sign != 0);
#endif
}

// The fields of a block's units, lanes are chains.
GF_HD void load_fields(const BoltzmannChains& f, const UnitBlock& b, int64_t group, IntLanes* GF_RESTRICT field,
                       int step) {
  const int32_t* chains = f.fields + group * kLanes * f.stride;
  if (b.word >= 0) {
    for (int u = 0; u < b.count; u += kLanes) {
      IntLanes square[kLanes];
#pragma GCC unroll 16
      for (int c = 0; c < kLanes; ++c) square[c] = load_lanes<IntLanes>(chains + c * f.stride + b.position + u);
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) field[(u + i) * step] = square[i];
    }
  } else {
    for (int i = 0; i < b.count; ++i)
      for (int c = 0; c < kLanes; ++c) field[i * step][c] = chains[c * f.stride + b.unit[i]];
  }
}

// Draws a block's units in kGroups groups of chains; flips[g] and was[g] are their bits that change, and before.
template <int kGroups>
[[gnu::noinline]] inline void draw_block(const BoltzmannChains& f, const UnitBlock& b, int64_t group,
                                         WordLanes (&flips)[kGroups], WordLanes (&was)[kGroups]) {
  IntLanes field[kUnitBlock][kGroups];
  WordLanes held[kGroups];
  FloatLanes beta[kGroups];
  for (int g = 0; g < kGroups; ++g) {
    load_fields(f, b, group + g, &field[0][g], kGroups);
    was[g] = gather_bits(f.state + (group + g) * f.words * kLanes, b);
    held[g] = f.held ? gather_bits(f.held + (group + g) * f.held_stride, b) : WordLanes{};
    if (group + g == f.groups - 1) held[g] |= ~f.exist;
    beta[g] = sweep_beta<VectorLane>(load_lanes<FloatLanes>(f.beta + (group + g) * kLanes), b.beta);
    flips[g] = WordLanes{};
  }
  for (int quad = 0; quad < b.count; quad += 4) {
    IntLanes x[4][kGroups], sign[4][kGroups];
    PhiloxWords<WordLanes> random[kGroups];
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) {
      const WordLanes chain = lane_numbers() + (f.first_chain + static_cast<uint32_t>((group + g) * kLanes));
      random[g] =
          philox(chain, WordLanes{} + static_cast<uint32_t>((b.position + quad) / 4), b.step, kStreamBoltzmann, f.seed);
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) x[u][g] = field[quad + u][g];
    }
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
        const uint32_t bit = 1u << (quad + u);
        const WordLanes on = (WordLanes)gibbs_accept<VectorLane>(x[u][g], f.scale, beta[g], random[g].w[u]);
        const WordLanes turned = (on ^ was[g]) & ~held[g] & bit;
        flips[g] |= turned;
        // 1 where the unit was turned on, -1 where it was turned off.
        sign[u][g] = (IntLanes)(turned != 0) & (1 | (IntLanes)((was[g] & bit) != 0));
#pragma GCC unroll 4
        for (int later = u + 1; later < 4; ++later)
          x[later][g] += signed_weight(b.pair[quad + later][quad + u], sign[u][g]);
      }
    }
    for (int j = quad + 4; j < b.count; ++j) {
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) {
        IntLanes sum = field[j][g];
#pragma GCC unroll 4
        for (int u = 0; u < 4; ++u) sum += signed_weight(b.pair[j][quad + u], sign[u][g]);
        field[j][g] = sum;
      }
    }
  }
  for (int g = 0; g < kGroups; ++g) {
    if (b.count < kUnitBlock) flips[g] &= (1u << b.count) - 1u;
    flip_bits(f.state + (group + g) * f.words * kLanes, b, flips[g]);
  }
}

// The units that a block's draws turned in a chain, as bits.
struct Turn {
  int32_t chain;
  uint32_t on, off;
};

// The turns of the chains that had any.
struct Turns {
  Turn* list;
  int64_t count = 0;

  GF_HD void add(int64_t group, WordLanes on, WordLanes off) {
    alignas(64) uint32_t turned_on[kLanes], turned_off[kLanes];
    store_lanes(turned_on, on);
    store_lanes(turned_off, off);
    for (int c = 0; c < kLanes; ++c) {
      list[count] = {static_cast<int32_t>(group * kLanes + c), turned_on[c], turned_off[c]};
      count += (turned_on[c] | turned_off[c]) != 0;
    }
  }
};

// Adds the rows that were turned on, and subtracts those turned off, in kRegisters registers of fields.
template <int kRegisters>
GF_HD void add_part(int32_t* GF_RESTRICT field, const int32_t* GF_RESTRICT rows, const int32_t* GF_RESTRICT row,
                    uint32_t on, uint32_t off) {
  IntLanes sum[kRegisters];
#pragma GCC unroll 8
  for (int r = 0; r < kRegisters; ++r) sum[r] = load_lanes<IntLanes>(field + r * kLanes);
  for (; on; on &= on - 1) {
    const int32_t* GF_RESTRICT w = rows + row[__builtin_ctz(on)];
#pragma GCC unroll 8
    for (int r = 0; r < kRegisters; ++r) sum[r] += load_lanes<IntLanes>(w + r * kLanes);
  }
  for (; off; off &= off - 1) {
    const int32_t* GF_RESTRICT w = rows + row[__builtin_ctz(off)];
#pragma GCC unroll 8
    for (int r = 0; r < kRegisters; ++r) sum[r] -= load_lanes<IntLanes>(w + r * kLanes);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRegisters; ++r) store_lanes(field + r * kLanes, sum[r]);
}

template <int kRegisters>
inline void add_columns(const BoltzmannChains& f, const UnitBlock& b, const Turns& turns, int64_t column) {
  const int32_t* rows = f.rows + column / kBoltzmannPanel * kBoltzmannPanel * f.d + column % kBoltzmannPanel;
  for (int64_t i = 0; i < turns.count; ++i) {
    const Turn& t = turns.list[i];
    add_part<kRegisters>(f.fields + t.chain * f.stride + column, rows, b.row, t.on, t.off);
  }
}

// Brings the fields of all units up to date, panel by panel: a block's rows in a panel stay in the first cache.
inline void add_turns(const BoltzmannChains& f, const UnitBlock& b, Turns& turns) {
  int64_t column = 0;
  for (; column + 8 * kLanes <= f.d; column += 8 * kLanes) add_columns<8>(f, b, turns, column);
  for (; column + 4 * kLanes <= f.d; column += 4 * kLanes) add_columns<4>(f, b, turns, column);
  for (; column + 2 * kLanes <= f.d; column += 2 * kLanes) add_columns<2>(f, b, turns, column);
  for (; column < f.d; column += kLanes) add_columns<1>(f, b, turns, column);
  turns.count = 0;
}

// The fields of the states that the chains start from; they hold those of units that are all off.
inline void start_fields(const BoltzmannChains& f, const int32_t* order, Turns& turns) {
  UnitBlock b{};
  for (int64_t position = 0; position < f.d; position += kUnitBlock) {
    set_block(f, order, position, true, b);
    for (int64_t g = 0; g < f.groups; ++g)
      turns.add(g, load_lanes<WordLanes>(f.state + (g * f.words + b.word) * kLanes), WordLanes{});
    add_turns(f, b, turns);
  }
}

template <int kGroups>
inline void visit(const BoltzmannChains& f, const UnitBlock& b, int64_t group, Turns& turns) {
  WordLanes flips[kGroups], was[kGroups];
  draw_block<kGroups>(f, b, group, flips, was);
  for (int g = 0; g < kGroups; ++g) turns.add(group + g, flips[g] & ~was[g], flips[g] & was[g]);
}

inline void sweep(const BoltzmannChains& f, const int32_t* order, bool in_order, uint32_t step, float beta,
                  Turns& turns) {
  UnitBlock b{};
  b.step = step;
  b.beta = beta;
  for (int64_t position = 0; position < f.d; position += kUnitBlock) {
    set_block(f, order, position, in_order, b);
    int64_t g = 0;
    for (; g + 2 <= f.groups; g += 2) visit<2>(f, b, g, turns);
    if (g < f.groups) visit<1>(f, b, g, turns);
    add_turns(f, b, turns);
  }
}

// The order of a sweep: Fisher and Yates' shuffle, i = d - 1 ... 1 trading places with word_i (i + 1) / 2^32.
// `words`: [d rounded up to 4 kLanes].
inline void shuffle_order(int64_t d, uint32_t step, uint64_t seed, uint32_t* words, int32_t* order) {
  for (int64_t i = 0; i < d; i += 4 * kLanes) {
    PhiloxWords<WordLanes> random =
        philox(WordLanes{}, lane_numbers() + static_cast<uint32_t>(i / 4), step, kStreamBoltzmannOrder, seed);
    in_unit_order(random.w);
    for (int k = 0; k < 4; ++k) store_lanes(words + i + k * kLanes, random.w[k]);
  }
  for (int64_t i = 0; i < d; ++i) order[i] = static_cast<int32_t>(i);
  for (int64_t i = d - 1; i > 0; --i) {
    const int64_t j = static_cast<int64_t>(static_cast<uint64_t>(words[i]) * static_cast<uint64_t>(i + 1) >> 32);
    const int32_t kept = order[i];
    order[i] = order[j];
    order[j] = kept;
  }
}

}  // namespace GF_BACKEND
}  // namespace gf
