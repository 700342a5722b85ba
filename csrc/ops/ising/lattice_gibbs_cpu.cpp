// Gibbs sampling of lattices on the CPU. A group is as many lattices, or strips of rows of lattices, as a register has
// lanes of 32 bits; word `at` of a colour is one register, so no site's neighbours lie in another lane but beyond a
// strip's first and last row. A group stays in the cache for all sweeps.
#include <cstdint>

#include "common/gibbs_lanes.h"
#include "common/parallel.h"
#include "common/scratch.h"
#include "ops/ising/ising_lanes.h"
#include "ops/ising/ising_states.h"
#include "ops/ising/lattice_math.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

GF_HD bool any_bit(WordLanes x) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)x, (__m512i)x) != 0;
#elif defined(__AVX__)
  return !_mm256_testz_si256((__m256i)x, (__m256i)x);
#else
  uint32_t all = 0;
  for (int i = 0; i < kLanes; ++i) all |= x[i];
  return all != 0;
#endif
}

// Lane i becomes v[from[i]].
GF_HD WordLanes permute(WordLanes v, IntLanes from) {
#if defined(__GNUC__) && !defined(__clang__)
  return __builtin_shuffle(v, from);
#else
  WordLanes out;
  for (int i = 0; i < kLanes; ++i) out[i] = v[from[i]];
  return out;
#endif
}

template <LatticeKind kKind>
struct Table {
  WordLanes bits[kRowKinds<kKind>][kPlanes][kClasses<kKind>];
  WordLanes flips[kRowKinds<kKind>][kClasses<kKind>];
};

template <LatticeKind kKind>
struct TableRow {
  const WordLanes (*bits)[kClasses<kKind>];
  const WordLanes* flips;
  GF_HD WordLanes bit(int b, int c) const { return bits[b][c]; }
  GF_HD WordLanes flipped(int c) const { return flips[c]; }
};

// How lattices are cut into lanes.
struct Strips {
  int64_t count;   // of a lattice
  int64_t chains;  // in a group
  int64_t rows;    // of words in a strip
  int64_t words;   // of one colour in a strip

  Strips(const Lattice& l, int64_t n) : count(1) {
    // Enough groups for some threads; rows of one parity start every strip.
    while (count < kLanes && n * count < 8 * kLanes && l.rows % (2 * count) == 0 &&
           (l.fields > 1 || l.rows / (2 * count) % 2 == 0))
      count *= 2;
    chains = kLanes / count;
    rows = l.rows / count;
    words = rows * l.row_words;
  }
};

template <LatticeKind kKind, class E>
class Group {
 public:
  Group(const LatticeGibbs& f, const Lattice& l, const Strips& strips, const SpinCode<E>& code)
      : f_(f),
        l_(l),
        strips_(strips),
        code_(code),
        energy_(f),
        masks_(l),
        states_(2 * strips.words * kLanes),
        held_(f.clamp ? 2 * strips.words * kLanes : 0),
        table_(1) {
    for (int i = 0; i < kLanes; ++i) {
      const int64_t strip = i % strips.count;
      const int base = static_cast<int>(i - strip), count = static_cast<int>(strips.count);
      word_[i] = static_cast<uint32_t>(strip * strips.words);
      bottom_[i] = strip == 0 && !l.wraps_y ? 0u : ~0u;
      top_[i] = strip == count - 1 && !l.wraps_y ? 0u : ~0u;
      from_below_[i] = base + static_cast<int>(strip + count - 1) % count;
      from_above_[i] = base + static_cast<int>(strip + 1) % count;
    }
  }

  int32_t run(int64_t group) {
    first_ = group * strips_.chains;
    for (int i = 0; i < kLanes; ++i) {
      const int64_t chain = first_ + i / strips_.count;
      exists_[i] = chain < f_.n ? ~0u : 0u;
      chain_[i] = f_.first_chain + static_cast<uint32_t>(chain);
      bad_[i] = false;
    }
    const int32_t status = load();
    const bool one_beta = f_.beta_sweeps == 1 && f_.beta_chains == 1;
    for (int64_t s = 0; s < f_.n_sweeps; ++s) {
      if ((s == 0 && !(has_table_ && one_beta)) || f_.beta_sweeps > 1) make_table(s);
      step_ = f_.first_step + static_cast<uint32_t>(s);
      const int64_t grain = (kBlockWords + l_.row_words - 1) / l_.row_words;
      for (int colour = 0; colour < 2; ++colour)
        parallel_for(strips_.rows, grain, [&](int64_t begin, int64_t end) { sweep(colour, begin, end); });
    }
    store();
    return status;
  }

 private:
  static constexpr int64_t kBlockWords = 64;  // words of a task where threads share a group

  int64_t chains_here() const { return f_.n - first_ < strips_.chains ? f_.n - first_ : strips_.chains; }
  uint32_t* states(int colour) { return reinterpret_cast<uint32_t*>(states_.get()) + colour * strips_.words * kLanes; }
  uint32_t* held(int colour) { return reinterpret_cast<uint32_t*>(held_.get()) + colour * strips_.words * kLanes; }

  // Calls g(chain, y, word index of a colour with its lane, shift) for every row and chunk of 32 columns.
  template <class G>
  void each_chunk(int64_t chain, G&& g) {
    for (int64_t y = 0; y < l_.height; ++y) {
      const int64_t row = y / l_.fields, strip = row / strips_.rows;
      const int64_t lane = chain * strips_.count + strip;
      const int field = static_cast<int>(y % l_.fields) * l_.field;
      const int64_t word = row % strips_.rows * l_.row_words;
      for (int64_t x = 0; x < l_.width; x += 32)
        g(y, x, (word + x / 64) * kLanes + lane, field + static_cast<int>(x / 2 % 32));
    }
  }

  int32_t load() {
    for (int64_t i = 0; i < 2 * strips_.words; ++i) states_.get()[i] = WordLanes{};
    if (f_.clamp)
      for (int64_t i = 0; i < 2 * strips_.words; ++i) held_.get()[i] = WordLanes{};
    int32_t status = 0;
    for (int64_t c = 0; c < chains_here(); ++c) {
      const int64_t sites = l_.height * l_.width;
      const E* in = static_cast<const E*>(f_.s) + (first_ + c) * sites;
      E bad = 0;
      each_chunk(c, [&](int64_t y, int64_t x, int64_t at, int shift) {
        const int64_t count = l_.width - x < 32 ? l_.width - x : 32;
        const uint32_t bits = pack_states(in + y * l_.width + x, count, code_, bad);
        const int even = static_cast<int>(y & 1);
        states(even)[at] |= even_bits(bits) << shift;
        states(1 - even)[at] |= even_bits(bits >> 1) << shift;
      });
      if (f_.clamp) {
        const uint8_t* mask = f_.clamp + (f_.clamp_per_chain ? (first_ + c) * sites : 0);
        each_chunk(c, [&](int64_t y, int64_t x, int64_t at, int shift) {
          const int64_t count = l_.width - x < 32 ? l_.width - x : 32;
          uint32_t bits = 0;
          for (int64_t i = 0; i < count; ++i) bits |= static_cast<uint32_t>(mask[y * l_.width + x + i] != 0) << i;
          const int even = static_cast<int>(y & 1);
          held(even)[at] |= even_bits(bits) << shift;
          held(1 - even)[at] |= even_bits(bits >> 1) << shift;
        });
      }
      bad_[c] = bad != 0;
      status |= bad != 0 ? kIsingNotStates : 0;
      for (int64_t s = 0; s < f_.beta_sweeps; ++s) {
        const bool good = is_temperature(beta(s, c));
        bad_[c] = bad_[c] || !good;
        status |= good ? 0 : kIsingBadBeta;
      }
    }
    return status;
  }

  void store() {
    for (int64_t c = 0; c < chains_here(); ++c) {
      E* out = static_cast<E*>(f_.out) + (first_ + c) * l_.height * l_.width;
      const SpinCode<E> code = bad_[c] ? SpinCode<E>{code_.nan, code_.nan, code_.nan, 0} : code_;
      each_chunk(c, [&](int64_t y, int64_t x, int64_t at, int shift) {
        const int64_t count = l_.width - x < 32 ? l_.width - x : 32;
        const int even = static_cast<int>(y & 1);
        const uint32_t bits = spread_bits(states(even)[at] >> shift) | spread_bits(states(1 - even)[at] >> shift) << 1;
        unpack_states(out + y * l_.width + x, count, bits, code);
      });
    }
  }

  float beta(int64_t sweep, int64_t chain) const {
    return f_.beta[(f_.beta_sweeps > 1 ? sweep : 0) * f_.beta_chains + (f_.beta_chains > 1 ? first_ + chain : 0)];
  }

  void make_table(int64_t sweep) {
    has_table_ = true;
    constexpr bool kGeneral = kKind == LatticeKind::general;
    constexpr int kCount = kClasses<kKind>;
    for (int kind = 0; kind < kRowKinds<kKind>; ++kind) {
      alignas(64) uint32_t bits[kCount][kLanes], flips[kCount][kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t chain = i / strips_.count, strip = i % strips_.count;
        // What the chains of a bad beta draw is not stored.
        const float given = chain < chains_here() || f_.beta_chains == 1 ? beta(sweep, chain) : 0.0f;
        const float b = is_temperature(given) ? given : 0.0f;
        const bool edge = !l_.wraps_y && ((kind == 0 && strip == 0) || (kind == 2 && strip == strips_.count - 1));
        const bool same =
            i > 0 && (f_.beta_chains == 1 || strip > 0) && (!kGeneral || l_.wraps_y || strips_.count == 1);
        for (int c = 0; c < kCount; ++c) {
          if (same) {
            bits[c][i] = bits[c][i - 1], flips[c][i] = flips[c][i - 1];
            continue;
          }
          const LatticeThreshold t = lattice_threshold(energy_.field_of(kGeneral, c, edge), f_.spin, b);
          bits[c][i] = t.bits, flips[c][i] = t.flipped;
        }
      }
      for (int c = 0; c < kCount; ++c) {
        table_.get()->flips[kind][c] = load_lanes<WordLanes>(flips[c]);
        const WordLanes t = load_lanes<WordLanes>(bits[c]);
        for (int b = 0; b < kPlanes; ++b) table_.get()->bits[kind][b][c] = (WordLanes)((IntLanes)(t << b) >> 31);
      }
    }
  }

  void sweep(int colour, int64_t begin, int64_t end) {
    WordLanes* mine = states_.get() + colour * strips_.words;
    const WordLanes* other = states_.get() + (1 - colour) * strips_.words;
    const WordLanes* held = f_.clamp ? held_.get() + colour * strips_.words : nullptr;
    const int64_t width = l_.row_words, rows = strips_.rows;
    const uint64_t seed = static_cast<uint64_t>(*f_.seed);
    const WordLanes first_word = word_ + static_cast<uint32_t>(colour * l_.words);
    for (int64_t r = begin; r < end; ++r) {
      const int kind = kRowKinds<kKind> == 1 ? 0 : r == 0 ? 0 : r == rows - 1 ? 2 : 1;
      const TableRow<kKind> table{table_.get()->bits[kind], table_.get()->flips[kind]};
      LatticePlace place{(r * l_.fields + colour) % 2 == 0, true, width == 1};
      for (int64_t w = 0; w < width; ++w) {
        const int64_t at = r * width + w;
        place.first = w == 0, place.end = w == width - 1;
        const WordLanes here = other[at];
        WordLanes up = r > 0 ? other[at - width] : permute(other[(rows - 1) * width + w], from_below_) & bottom_;
        WordLanes down = r + 1 < rows ? other[at + width] : permute(other[w], from_above_) & top_;
        if (masks_.packed) {
          up = (here << masks_.field) | (up >> (32 - masks_.field));
          down = (here >> masks_.field) | (down << (32 - masks_.field));
        }
        const WordLanes beside = masks_.beside(place, here, place.first ? other[at + width - 1] : other[at - 1],
                                               place.end ? other[at - w] : other[at + 1]);
        const LatticeDraw<kKind, WordLanes> draw(
            {here, beside, up, down, masks_.without_first(place), masks_.without_second(place)});
        const WordLanes block = first_word + static_cast<uint32_t>(at);
        const WordLanes drawn = draw.draw(
            exists_ & masks_.sites(place), table,
            [&](int b) { return philox_lanes(chain_, block, step_, lattice_stream(b), seed); },
            [](WordLanes left) { return any_bit(left); });
        mine[at] = held ? (drawn & ~held[at]) | (mine[at] & held[at]) : drawn;
      }
    }
  }

  const LatticeGibbs& f_;
  const Lattice& l_;
  const Strips& strips_;
  const SpinCode<E> code_;
  const LatticeEnergy energy_;
  const LatticeMasks masks_;
  int64_t first_ = 0;  // chain
  Scratch<WordLanes> states_, held_;
  Scratch<Table<kKind>> table_;
  WordLanes exists_, chain_, word_, bottom_, top_;
  IntLanes from_below_, from_above_;
  uint32_t step_ = 0;
  bool bad_[kLanes] = {}, has_table_ = false;
};

template <LatticeKind kKind, class E>
int32_t run_groups(const LatticeGibbs& f, const Lattice& l, const SpinCode<E>& code) {
  const Strips strips(l, f.n);
  const int64_t groups = (f.n + strips.chains - 1) / strips.chains;
  int32_t status = 0;
  const auto run = [&](int64_t begin, int64_t end) {
    Group<kKind, E> group(f, l, strips, code);
    for (int64_t g = begin; g < end; ++g) {
      const int32_t s = group.run(g);
      if (s) __atomic_fetch_or(&status, s, __ATOMIC_RELAXED);
    }
  };
  if (groups >= 4)
    parallel_for(groups, (groups + 63) / 64, run);
  else
    run(0, groups);  // threads share a group
  return status;
}

}  // namespace

void lattice_gibbs(const LatticeGibbs& f) {
  const Lattice l = f.lattice();
  *f.status = 0;
  if (f.n == 0 || l.words == 0) return;
  const LatticeKind kind = LatticeEnergy(f).kind(l);
  dispatch_spins(f.state, f.spin, [&](auto code) {
    *f.status = kind == LatticeKind::even      ? run_groups<LatticeKind::even>(f, l, code)
                : kind == LatticeKind::uniform ? run_groups<LatticeKind::uniform>(f, l, code)
                                               : run_groups<LatticeKind::general>(f, l, code);
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
