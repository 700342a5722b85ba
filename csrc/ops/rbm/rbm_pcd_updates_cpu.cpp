// Many small updates of an RBM by persistent contrastive divergence in one call, in place: what a batch costs is its
// active units' rows of W, one pass over the visible units for the chains, and no call from Python.
//
// An update of a batch v of rows, with chains h: p = P(h | v); v' ~ P(v | h), p' = P(h | v');
// W += lr (v^T p - v'^T p'), a += lr (sum v - sum v'), b += lr (sum p - sum p'); then h ~ p'.
#include <cstdint>

#include "common/gibbs_lanes.h"
#include "common/parallel.h"
#include "common/philox.h"
#include "common/real.h"
#include "common/scratch.h"
#include "ops/rbm/rbm.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

// Lanes are chains, or hidden units. A block is kLanes chains: one register of floats, two of doubles.
template <class T>
using Row = Native<T>;
template <class T>
constexpr int kRow = Native<T>::size;

template <class T>
GF_HD void add_row(T* GF_RESTRICT to, const T* GF_RESTRICT x, int64_t n, T scale) {
  for (int64_t j = 0; j < n; j += kRow<T>) store(to + j, fma(Row<T>(scale), load<Row<T>>(x + j), load<Row<T>>(to + j)));
}

template <class T>
struct Updates {
  const RbmPcdUpdates& f;
  const int64_t nv, nh, m, width, blocks;  // width: hidden units padded to lanes; blocks: of kLanes chains
  T *W, *a, *b, *chains;
  const T* values;
  mutable Scratch<T> lanes_h, data_p, model_p;  // [nh, blocks, kLanes]; [rows of a batch, width]; [m, width]
  mutable Scratch<uint32_t> masks;              // [nv up to a multiple of 4, blocks]: chains where a unit is active
  mutable Scratch<T> sums;                      // [parts, m, width]
  const bool threads;
  const int64_t parts;  // of the visible units
  static constexpr int64_t kManyParts = 8;
  bool is_large() const { return nv * width * blocks * kLanes > int64_t{1} << 23; }

  Updates(const RbmPcdUpdates& call, int64_t most_rows)
      : f(call),
        nv(call.nv),
        nh(call.nh),
        m(call.m),
        width(call.width),
        blocks((call.m + kLanes - 1) / kLanes),
        W(static_cast<T*>(call.W)),
        a(static_cast<T*>(call.vbias)),
        b(static_cast<T*>(call.hbias)),
        chains(static_cast<T*>(call.chains)),
        values(static_cast<const T*>(call.values)),
        lanes_h(call.nh * blocks * kLanes),
        data_p(most_rows * call.width),
        model_p(call.m * call.width),
        masks((call.nv + 3) / 4 * 4 * blocks),
        sums((is_large() ? kManyParts : 1) * call.m * call.width),
        threads(is_large()),
        parts(threads ? kManyParts : 1) {
    for (int64_t j = 0; j < nh; ++j)
      for (int64_t c = 0; c < blocks * kLanes; ++c)
        lanes_h.get()[j * blocks * kLanes + c] = c < m ? chains[c * nh + j] : T(0);
  }

  template <class F>
  void each(int64_t count, int64_t grain, F&& run) const {
    if (threads)
      parallel_for(count, grain, run);
    else
      run(0, count);
  }

  // P(h = 1 | the units that `visit` names with a value) of kParts registers of hidden units from j on.
  template <int kParts, class Visit>
  void hidden_part(T* p, int64_t j, Visit&& visit) const {
    Row<T> field[kParts];
    for (int r = 0; r < kParts; ++r) field[r] = load<Row<T>>(b + j + r * kRow<T>);
    const T* rows = W + j;
    visit([&](int64_t i, T x) {
      for (int r = 0; r < kParts; ++r)
        field[r] = fma(Row<T>(x), load<Row<T>>(rows + i * width + r * kRow<T>), field[r]);
    });
    for (int r = 0; r < kParts; ++r) store(p + j + r * kRow<T>, sigmoid(field[r]));
  }
  template <class Visit>
  void hidden(T* p, Visit&& visit) const {
    int64_t j = 0;
    for (; j + 8 * kRow<T> <= width; j += 8 * kRow<T>) hidden_part<8>(p, j, visit);
    for (; j + 4 * kRow<T> <= width; j += 4 * kRow<T>) hidden_part<4>(p, j, visit);
    for (; j + 2 * kRow<T> <= width; j += 2 * kRow<T>) hidden_part<2>(p, j, visit);
    for (; j < width; j += kRow<T>) hidden_part<1>(p, j, visit);
  }

  // Four visible units of kBlocks blocks of chains.
  template <int kBlocks>
  void draw_visible(int64_t unit, int64_t block, uint32_t step) const {
    constexpr int kEach = kLanes / kRow<T>, kRows = kBlocks * kEach;
    Row<T> field[4][kRows];
    const T* row[4];
    for (int u = 0; u < 4; ++u) {
      const int64_t i = unit + u < nv ? unit + u : nv - 1;
      row[u] = W + i * width;
      for (int k = 0; k < kRows; ++k) field[u][k] = Row<T>(a[i]);
    }
    const T* h = lanes_h.get() + block * kLanes;
    for (int64_t j = 0; j < nh; ++j, h += blocks * kLanes) {
      Row<T> x[kRows];
      for (int k = 0; k < kRows; ++k) x[k] = load<Row<T>>(h + k * kRow<T>);
      for (int u = 0; u < 4; ++u)
        for (int k = 0; k < kRows; ++k) field[u][k] = fma(Row<T>(row[u][j]), x[k], field[u][k]);
    }
    for (int k = 0; k < kBlocks; ++k) {
      const WordLanes chain = lane_numbers() + static_cast<uint32_t>((block + k) * kLanes);
      const PhiloxWords<WordLanes> random =
          philox(chain, WordLanes{} + static_cast<uint32_t>(unit / 4), step, kStreamRbmVisible, seed());
      const int64_t left = m - (block + k) * kLanes;
      const uint32_t exist = left < kLanes ? (1u << left) - 1u : ~0u;
      for (int u = 0; u < 4; ++u)
        masks_at(unit + u)[block + k] =
            unit + u < nv ? drawn(sigmoid(as_floats(field[u] + k * kEach)), random.w[u]) & exist : 0;
    }
  }

  static GF_HD Pack<float, kLanes> as_floats(const Row<T>* x) {
    float lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = static_cast<float>(x[i / kRow<T>][i % kRow<T>]);
    return load<Pack<float, kLanes>>(lanes);
  }
  // Bits of the lanes that become 1 with the probability p.
  static GF_HD uint32_t drawn(Pack<float, kLanes> p, WordLanes word) {
    const FloatLanes u =
        VectorLane::to_float((IntLanes)(word >> 1)) * VectorLane::splat(0x1p-31f) + VectorLane::splat(0x1p-32f);
    return lane_bits((IntLanes)(u < p.v));
  }

  // The chains' hidden units: kLanes blocks of four units at a time.
  void draw_hidden(uint32_t step) const {
    for (int64_t c = 0; c < m; ++c) {
      const T* p = model_p.get() + c * width;
      T* h = lanes_h.get() + c;
      for (int64_t j = 0; j < nh; j += 4 * kLanes) {
        PhiloxWords<WordLanes> random =
            philox(WordLanes{} + static_cast<uint32_t>(c), lane_numbers() + static_cast<uint32_t>(j / 4), step,
                   kStreamRbmHidden, seed());
        in_unit_order(random.w);
        for (int r = 0; r < 4; ++r) {
          float x[kLanes];
          for (int i = 0; i < kLanes; ++i) {
            const int64_t unit = j + r * kLanes + i;
            x[i] = unit < nh ? static_cast<float>(p[unit]) : 0.0f;
          }
          const uint32_t bits = drawn(load<Pack<float, kLanes>>(x), random.w[r]);
          for (int64_t i = 0; i < kLanes && j + r * kLanes + i < nh; ++i)
            h[(j + r * kLanes + i) * blocks * kLanes] = static_cast<T>(bits >> i & 1u);
        }
      }
    }
  }

  // The chains in which a visible unit is active.
  template <class F>
  GF_HD void each_chain(int64_t unit, F&& run) const {
    for (int64_t k = 0; k < blocks; ++k)
      for (uint32_t bits = masks_at(unit)[k]; bits; bits &= bits - 1) run(k * kLanes + __builtin_ctz(bits));
  }

  // Takes rate times the sum of p' of the chains where the unit is active from kParts registers of its row.
  template <int kParts>
  void subtract(int64_t unit, int64_t j, T rate) const {
    Row<T> sum[kParts];
    for (int r = 0; r < kParts; ++r) sum[r] = Row<T>(T(0));
    const T* p = model_p.get() + j;
    each_chain(unit, [&](int64_t c) {
      for (int r = 0; r < kParts; ++r) sum[r] += load<Row<T>>(p + c * width + r * kRow<T>);
    });
    T* row = W + unit * width + j;
    for (int r = 0; r < kParts; ++r)
      store(row + r * kRow<T>, fma(Row<T>(-rate), sum[r], load<Row<T>>(row + r * kRow<T>)));
  }

  uint64_t seed() const { return static_cast<uint64_t>(*f.seed); }
  T* sums_at(int64_t part) const { return sums.get() + part * m * width; }
  uint32_t* masks_at(int64_t unit) const { return masks.get() + unit * blocks; }

  void update(int64_t begin, int64_t end, uint32_t step) {
    const T rate = static_cast<T>(f.learning_rate) / static_cast<T>(end - begin);
    each(end - begin, 1, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r)
        hidden(data_p.get() + r * width, [&](auto&& add) {
          for (int64_t k = f.starts[begin + r]; k < f.starts[begin + r + 1]; ++k) add(f.indices[k], values[k]);
        });
    });
    // The chains' visible units, and meanwhile the sums of the rows of those that are active.
    const int64_t fours = (nv + 3) / 4;
    each(parts, 1, [&](int64_t first, int64_t last) {
      for (int64_t part = first; part < last; ++part) {
        T* sums = sums_at(part);
        for (int64_t i = 0; i < m * width; ++i) sums[i] = T(0);
        for (int64_t four = fours * part / parts; four < fours * (part + 1) / parts; ++four) {
          int64_t block = 0;
          for (; block + 2 <= blocks; block += 2) draw_visible<2>(4 * four, block, step);
          for (; block < blocks; ++block) draw_visible<1>(4 * four, block, step);
          for (int64_t i = 4 * four; i < 4 * four + 4 && i < nv; ++i)
            each_chain(i, [&](int64_t c) { add_row(sums + c * width, W + i * width, width, T(1)); });
        }
      }
    });
    each(m, 1, [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) {
        T* p = model_p.get() + c * width;
        for (int64_t j = 0; j < width; j += kRow<T>) {
          Row<T> field = load<Row<T>>(b + j);
          for (int64_t part = 0; part < parts; ++part) field += load<Row<T>>(sums_at(part) + c * width + j);
          store(p + j, sigmoid(field));
        }
      }
    });

    for (int64_t r = 0; r < end - begin; ++r) {
      const T* p = data_p.get() + r * width;
      for (int64_t k = f.starts[begin + r]; k < f.starts[begin + r + 1]; ++k) {
        const int64_t i = f.indices[k];
        add_row(W + i * width, p, width, rate * values[k]);
        a[i] += rate * values[k];
      }
      add_row(b, p, width, rate);
    }
    each(nv, 64, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        int count = 0;
        each_chain(i, [&](int64_t) { ++count; });
        if (count == 0) continue;
        int64_t j = 0;
        for (; j + 8 * kRow<T> <= width; j += 8 * kRow<T>) subtract<8>(i, j, rate);
        for (; j + 2 * kRow<T> <= width; j += 2 * kRow<T>) subtract<2>(i, j, rate);
        for (; j < width; j += kRow<T>) subtract<1>(i, j, rate);
        a[i] -= rate * static_cast<T>(count);
      }
    });
    for (int64_t c = 0; c < m; ++c) add_row(b, model_p.get() + c * width, width, -rate);
    draw_hidden(step);
  }

  void finish() const {
    for (int64_t c = 0; c < m; ++c)
      for (int64_t j = 0; j < nh; ++j) chains[c * nh + j] = lanes_h.get()[j * blocks * kLanes + c];
  }
};

template <class T>
void run_updates(const RbmPcdUpdates& f) {
  int64_t most = 0;
  for (int64_t i = 0; i < f.n_batches; ++i)
    most = f.edges[i + 1] - f.edges[i] > most ? f.edges[i + 1] - f.edges[i] : most;
  Updates<T> updates(f, most);
  for (int64_t i = 0; i < f.n_batches; ++i)
    updates.update(f.edges[i], f.edges[i + 1], f.first_step + static_cast<uint32_t>(i));
  updates.finish();
}

}  // namespace

void rbm_pcd_updates(const RbmPcdUpdates& f) { f.dtype == DType::f64 ? run_updates<double>(f) : run_updates<float>(f); }

}  // namespace GF_BACKEND
}  // namespace gf
