// The draw of 32 sites of one colour at once, for words of 32 bits and for vectors of such words.
//
// The conditional of a site depends on the sums m_y and m_x of its neighbours along the axes alone. For each pair of
// them, a class,
//   f = (m_y J_y + m_x J_x) + h in float64,  z = float32(2 f) * beta  (f instead of 2 f for states 0 and 1),
//   t = exp(-|z|) in float32 as in gibbs.h,  p = t r in float64 with r = 1 / (1 + t),  T = floor(2^32 p + 1/2),
// and a site of that class becomes 1 where (U < T) != (z > 0), with U of 32 random bits. The sites of a word draw U
// together, bit by bit from the highest: bit 31 - b is the site's bit of word b % 4 of Philox at
//   (chain, colour * words + word, step, kStreamIsing + 2^16 (1 + b / 4)).
// A comparison is settled by the first bit in which U and T differ: after b bits 2^-b of the sites are left, and bits
// that nobody needs are not made.
#pragma once

#include <cstdint>

#include "common/gibbs.h"
#include "common/philox.h"
#include "ops/ising/lattice.h"

namespace gf {
inline namespace GF_BACKEND {

constexpr int kPlanes = 32;

GF_HD uint32_t lattice_stream(int planes) { return kStreamIsing + (static_cast<uint32_t>(1 + planes / 4) << 16); }

// --- thresholds

#if defined(__CUDA_ARCH__)
GF_HD double rounded_add(double a, double b) { return __dadd_rn(a, b); }
GF_HD double rounded_mul(double a, double b) { return __dmul_rn(a, b); }
#endif

// 1 / d for d from 1 to 2: a line within 1/17, and four steps of Newton. (A division is a function call on a GPU.)
GF_HD double reciprocal(double d) {
  double r = rounded_add(24.0 / 17.0, -rounded_mul(8.0 / 17.0, d));
  for (int i = 0; i < 4; ++i) r = rounded_mul(r, rounded_add(2.0, -rounded_mul(d, r)));
  return r;
}

struct LatticeThreshold {
  uint32_t bits;     // T <= 2^31
  uint32_t flipped;  // all ones where z > 0
};

GF_HD LatticeThreshold lattice_threshold(double f, bool spin, float beta) {
  const float z = rounded_mul(static_cast<float>(spin ? 2.0 * f : f), beta);
  const float t = exp_negative<ScalarLane>(z < 0.0f ? -z : z);
  const double p = rounded_mul(static_cast<double>(t), reciprocal(rounded_add(1.0, static_cast<double>(t))));
  return {static_cast<uint32_t>(rounded_add(p * 0x1p32, 0.5)), z > 0.0f ? ~0u : 0u};
}

// What the classes are.
// - Uniform: no boundary and one coupling: 0 ... 4 neighbours are 1.
// - Even: that with states +-1 and no field, so that T is the same for n and 4 - n.
// - General: along x 0, 1 or 2 of two neighbours, or 0 or 1 of one; along y 0, 1 or 2.
enum class LatticeKind { even, uniform, general };

template <LatticeKind kKind>
constexpr int kClasses = kKind == LatticeKind::general ? 15 : 5;

// Rows of the general kind: those at the lower boundary, within, at the upper boundary. The others have one kind.
template <LatticeKind kKind>
constexpr int kRowKinds = kKind == LatticeKind::general ? 3 : 1;

struct LatticeEnergy {
  double y, x, field;
  bool spin;
  bool alone_x, alone_y;  // there is no neighbour along this axis

  explicit LatticeEnergy(const LatticeGibbs& f)
      : y(f.coupling_y), x(f.coupling_x), field(f.field), spin(f.spin), alone_x(f.width == 1), alone_y(f.height == 1) {}

  LatticeKind kind(const Lattice& l) const {
    if (!l.wraps_y || !l.wraps_x || y != x) return LatticeKind::general;
    return spin && field == 0 ? LatticeKind::even : LatticeKind::uniform;
  }

  // The sum of `of` neighbours of which some are 1.
  GF_HD double sum(int ones, int of) const { return spin ? 2 * ones - of : ones; }

  // f of a class; `edge`: of a row that has one neighbour along y.
  GF_HD double field_of(bool general, int c, bool edge) const {
    // With one coupling the sum does not depend on how the ones lie: all products and their sum are exact, or round 3
    // J.
    const int along_x = general ? c % 5 : c / 2, along_y = general ? c / 5 : c - c / 2;
    const double m_x = alone_x && general ? 0.0 : along_x < 3 ? sum(along_x, 2) : sum(along_x - 3, 1);
    const double m_y = alone_y && general ? 0.0 : sum(along_y, edge ? 1 : 2);
    return rounded_add(rounded_add(rounded_mul(m_y, y), rounded_mul(m_x, x)), field);
  }
};

// --- words

// Where a word lies in its colour, with what tells its sites apart.
struct LatticePlace {
  bool left;        // the second neighbour along x is k - 1; else k + 1 (the first one is k)
  bool first, end;  // the first or last word of its row
};

// What all words of a lattice share.
struct LatticeMasks {
  uint32_t low;     // bit 0 of every field: k = 0 in the first word of a row
  uint32_t high;    // k = K - 1 in the last word
  uint32_t exists;  // bits of sites in the last word
  uint32_t even;    // fields of even rows
  int field, last;
  bool packed, one_word, wraps_x, odd_width;

  explicit LatticeMasks(const Lattice& l)
      : low(0),
        exists(0),
        even(0),
        field(l.field),
        last(l.last),
        packed(l.fields > 1),
        one_word(l.row_words == 1),
        wraps_x(l.wraps_x),
        odd_width(l.width % 2 != 0) {
    const uint32_t sites = last == 31 ? ~0u : (2u << last) - 1u;
    for (int r = 0; r < l.fields; ++r) {
      low |= 1u << (r * field);
      exists |= sites << (r * field);
      if (r % 2 == 0) even |= (field == 32 ? ~0u : (1u << field) - 1u) << (r * field);
    }
    high = low << last;
  }

  GF_HD uint32_t sites(const LatticePlace& p) const {
    if (!p.end) return ~0u;
    return odd_width && !p.left ? exists & ~high : exists;  // rows of odd width have one site less in this colour
  }

  // The neighbours k - 1 or k + 1; `before` and `after` are the words beside `here` in its row, cyclically.
  template <class U>
  GF_HD U beside(const LatticePlace& p, U here, U before, U after) const {
    if (packed) {
      const U left = ((here << 1) & ~low) | ((here >> last) & low),
              right = ((here >> 1) & ~high) | ((here & low) << last);
      const uint32_t mine = p.left ? even : ~even;
      return (left & mine) | (right & ~mine);
    }
    if (p.left) {
      const U carry = p.first ? (wraps_x ? (before >> last) & 1u : U{}) : before >> 31;
      return (here << 1) | carry;
    }
    if (!p.end) return (here >> 1) | (after << 31);
    const U right = (here >> 1) & ~high;
    return wraps_x ? right | ((after & 1u) << last) : right;
  }

  // Sites without their first and their second neighbour along x.
  GF_HD uint32_t without_first(const LatticePlace& p) const {
    return !wraps_x && odd_width && p.left && p.end ? high : 0u;
  }
  GF_HD uint32_t without_second(const LatticePlace& p) const {
    if (wraps_x) return 0;
    return p.left ? (p.first ? 1u : 0u) : p.end && !odd_width ? high : 0u;
  }
};

// The neighbours of 32 sites.
template <class U>
struct LatticeNeighbours {
  U first, second, up, down;
  uint32_t no_first, no_second;
};

// The classes of 32 sites as masks, and the draw. A table has T and flipped of a class: `bit(b, c)` is all ones where
// bit 31 - b of T is set, `flipped(c)`.
template <LatticeKind kKind, class U>
struct LatticeDraw {
  U m[kKind == LatticeKind::general ? 8 : 5];

  GF_HD explicit LatticeDraw(const LatticeNeighbours<U>& n) {
    if constexpr (kKind == LatticeKind::general) {
      const uint32_t one = n.no_first ^ n.no_second, none = n.no_first & n.no_second;
      const U a = n.first & ~n.no_first, b = n.second & ~n.no_second;
      const U any = a | b, odd = a ^ b, both = a & b;
      m[0] = ~any & ~(one | none);
      m[1] = (odd & ~one) | none;
      m[2] = both;
      m[3] = ~any & one;
      m[4] = any & one;
      m[5] = ~(n.up | n.down);
      m[6] = n.up ^ n.down;
      m[7] = n.up & n.down;
    } else {
      const U x1 = n.first ^ n.second, x2 = n.first & n.second, y1 = n.up ^ n.down, y2 = n.up & n.down;
      const U odd = x1 ^ y1, pair = x2 | y2, four = x2 & y2, any = x1 | y1 | pair;
      m[0] = ~any;
      m[1] = odd & ~pair;
      m[3] = odd & pair;
      m[4] = four;
      m[2] = any & ~odd & ~four;
    }
  }

  // The classes' choice of f(c).
  template <class F>
  GF_HD U choose(F&& f) const {
    if constexpr (kKind == LatticeKind::general) {
      U all{};
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 3
#endif
      for (int v = 0; v < 3; ++v) {
        const int c = 5 * v;
        all |=
            m[5 + v] & ((m[0] & f(c)) | (m[1] & f(c + 1)) | (m[2] & f(c + 2)) | (m[3] & f(c + 3)) | (m[4] & f(c + 4)));
      }
      return all;
    } else {
      return (m[0] & f(0)) | (m[1] & f(1)) | (m[2] & f(2)) | (m[3] & f(3)) | (m[4] & f(4));
    }
  }

  // New states of the sites in `wanted`; random(b) draws planes b ... b + 3, any(left) tells whether a bit is set.
  template <class Table, class Random, class Any>
  GF_HD U draw(U wanted, const Table& table, Random&& random, Any&& any) const {
    U left = wanted, less{};
    const U outer = kKind == LatticeKind::even ? m[0] | m[4] : U{},
            inner = kKind == LatticeKind::even ? m[1] | m[3] : U{};
    for (int b = 0; b < kPlanes; b += 4) {
      const PhiloxWords<U> drawn = random(b);
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 4
#endif
      for (int i = 0; i < 4; ++i) {
        U t;
        if constexpr (kKind == LatticeKind::even)
          t = (outer & table.bit(b + i, 0)) | (inner & table.bit(b + i, 1)) | (m[2] & table.bit(b + i, 2));
        else
          t = choose([&](int c) { return table.bit(b + i, c); });
        const U settled = left & (drawn.w[i] ^ t);
        less |= settled & t;
        left &= ~settled;
      }
      if (b > 0 && !any(left)) break;
    }
    return (less ^ choose([&](int c) { return table.flipped(c); })) & wanted;
  }
};

}  // namespace GF_BACKEND
}  // namespace gf
