// Gibbs sampling of lattices on the GPU. A thread draws 32 sites. A block owns some lattices for all sweeps, as bits in
// shared memory; of lattices too large for it, the bits lie in global memory, and each colour is a launch.
#include "common/launch.cuh"
#include "common/reduce.cuh"
#include "ops/ising/ising_states.h"
#include "ops/ising/lattice_math.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int kThreads = 128;

struct DeviceLattice {
  Lattice l;
  LatticeMasks masks;
  LatticeEnergy energy;
  int64_t n, n_sweeps, beta_sweeps, beta_chains;
  const void* s;
  void* out;
  const float* beta;
  const uint8_t* clamp;
  bool clamp_per_chain;
  const int64_t* seed;
  uint32_t first_chain, first_step;
  int* status;  // null: not wanted
  // Global memory of large lattices.
  unsigned* states;  // [n, 1 or 2, 2 colours, words]: states, and the clamp's bits
  int* bad;          // [n]
  int64_t block_words;

  explicit DeviceLattice(const LatticeGibbs& f)
      : l(f.lattice()),
        masks(l),
        energy(f),
        n(f.n),
        n_sweeps(f.n_sweeps),
        beta_sweeps(f.beta_sweeps),
        beta_chains(f.beta_chains),
        s(f.s),
        out(f.out),
        beta(f.beta),
        clamp(f.clamp),
        clamp_per_chain(f.clamp_per_chain),
        seed(f.seed),
        first_chain(f.first_chain),
        first_step(f.first_step),
        status(f.status),
        states(f.workspace + 16),
        bad(reinterpret_cast<int*>(f.workspace + 16 + f.n * lattice_block_words(f))),
        block_words(lattice_block_words(f)) {}

  __device__ float beta_of(int64_t sweep, int64_t chain) const {
    return beta[(beta_sweeps > 1 ? sweep : 0) * beta_chains + (beta_chains > 1 ? chain : 0)];
  }

  // The site of a bit of a word, or -1. Words of a colour are fewer than 2^31 (lattice_args.cpp).
  __device__ int64_t site(int colour, int word, int bit) const {
    const int width = static_cast<int>(l.row_words), row = word / width;
    const int64_t y = static_cast<int64_t>(row) * l.fields + bit / l.field;
    const int64_t x = 2 * (static_cast<int64_t>(word - row * width) * 32 + bit % l.field) + ((y + colour) & 1);
    return x < l.width ? y * l.width + x : -1;
  }
};

// A warp reads a word of states or of the clamp, a lane a bit. Returns whether a state was none.
template <class E>
__device__ bool read_word(const DeviceLattice& f, const SpinCode<E>& code, int64_t chain, int64_t word, unsigned* to) {
  const int64_t words = f.l.words, sites = f.l.height * f.l.width;
  const bool of_clamp = word >= 2 * words;
  if (of_clamp) word -= 2 * words;
  const int colour = word >= words;
  const int64_t site = f.site(colour, static_cast<int>(word - colour * words), lane_index());
  bool on = false, wrong = false;
  if (site >= 0 && of_clamp) {
    on = f.clamp[(f.clamp_per_chain ? chain * sites : 0) + site] != 0;
  } else if (site >= 0) {
    const E x = static_cast<const E*>(f.s)[chain * sites + site];
    on = x == code.up;
    wrong = !on && static_cast<E>(x & static_cast<E>(~code.ignored)) != code.down;
  }
  const unsigned bits = __ballot_sync(kFullWarp, on);
  if (lane_index() == 0) *to = bits;
  return __any_sync(kFullWarp, wrong) != 0;
}

template <class E>
__device__ void write_word(const DeviceLattice& f, const SpinCode<E>& code, int64_t chain, int64_t word, unsigned bits,
                           bool bad) {
  const int64_t words = f.l.words;
  const int lane = lane_index();
  const int colour = word >= words;
  const int64_t site = f.site(colour, static_cast<int>(word - colour * words), lane);
  if (site >= 0)
    static_cast<E*>(f.out)[chain * f.l.height * f.l.width + site] = bad                   ? code.nan
                                                                    : (bits >> lane & 1u) ? code.up
                                                                                          : code.down;
}

template <LatticeKind kKind>
struct DeviceTable {
  const LatticeThreshold* of;
  __device__ unsigned bit(int b, int c) const { return 0u - (of[c].bits >> (31 - b) & 1u); }
  __device__ unsigned flipped(int c) const { return of[c].flipped; }
};

template <LatticeKind kKind>
constexpr int kEntries = kRowKinds<kKind> * kClasses<kKind>;

template <LatticeKind kKind>
__device__ LatticeThreshold table_entry(const DeviceLattice& f, int i, float beta) {
  const int kind = i / kClasses<kKind>, c = i % kClasses<kKind>;
  const bool edge = kRowKinds<kKind> > 1 && !f.l.wraps_y && kind != 1;
  return lattice_threshold(f.energy.field_of(kKind == LatticeKind::general, c, edge), f.energy.spin, beta);
}

// Draws word `at` of a colour.
template <LatticeKind kKind>
__device__ void draw_word(const DeviceLattice& f, unsigned* states, const LatticeThreshold* table, int colour, int at,
                          int64_t chain, uint32_t step, uint64_t seed) {
  const int64_t words = f.l.words;
  const int width = static_cast<int>(f.l.row_words), rows = static_cast<int>(f.l.rows);
  unsigned* mine = states + colour * words;
  const unsigned* other = states + (1 - colour) * words;
  const int r = at / width, w = at - r * width;
  const LatticePlace place{(r * f.l.fields + colour) % 2 == 0, w == 0, w == width - 1};
  const unsigned here = other[at];
  unsigned up = r > 0 ? other[at - width] : f.l.wraps_y ? other[(rows - 1) * width + w] : 0u;
  unsigned down = r + 1 < rows ? other[at + width] : f.l.wraps_y ? other[w] : 0u;
  if (f.masks.packed) {
    up = (here << f.masks.field) | (up >> (32 - f.masks.field));
    down = (here >> f.masks.field) | (down << (32 - f.masks.field));
  }
  const unsigned beside = f.masks.beside(place, here, place.first ? other[at + width - 1] : other[at - 1],
                                         place.end ? other[at - w] : other[at + 1]);
  const LatticeDraw<kKind, unsigned> draw(
      {here, beside, up, down, f.masks.without_first(place), f.masks.without_second(place)});
  const int kind = kRowKinds<kKind> == 1 ? 0 : r == 0 ? 0 : r == rows - 1 ? 2 : 1;
  const unsigned drawn = draw.draw(
      f.masks.sites(place), DeviceTable<kKind>{table + kind * kClasses<kKind>},
      [&](int b) {
        return philox<uint32_t>(f.first_chain + static_cast<uint32_t>(chain),
                                static_cast<uint32_t>(colour * words) + static_cast<uint32_t>(at), step,
                                lattice_stream(b), seed);
      },
      [](unsigned left) { return left != 0; });
  if (f.clamp) {
    const unsigned held = mine[2 * words + at];
    mine[at] = (drawn & ~held) | (mine[at] & held);
  } else {
    mine[at] = drawn;
  }
}

__device__ __forceinline__ bool bad_temperature(const DeviceLattice& f, int64_t chain, int64_t first, int64_t stride) {
  bool bad = false;
  for (int64_t s = first; s < f.beta_sweeps; s += stride) bad = bad || !is_temperature(f.beta_of(s, chain));
  return bad;
}

__global__ void lattice_clear_kernel(int* status, int* bad, int64_t n) {
  if (grid_thread() == 0 && status) *status = 0;
  if (bad)
    for (int64_t i = grid_thread(); i < n; i += grid_threads()) bad[i] = 0;
}

template <LatticeKind kKind, class E>
__global__ void __launch_bounds__(kThreads) lattice_kernel(DeviceLattice f, SpinCode<E> code, int chains_of_block) {
  // [chains, block_words] states and clamp, [chains, kEntries] thresholds, [chains] faults
  unsigned* states = dynamic_shared<unsigned>();
  LatticeThreshold* table = reinterpret_cast<LatticeThreshold*>(states + chains_of_block * f.block_words);
  int* bad = reinterpret_cast<int*>(table + chains_of_block * kEntries<kKind>);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * chains_of_block;
  const int64_t left = f.n - first;
  const int chains = static_cast<int>(left < chains_of_block ? left : chains_of_block);
  const int thread = block_thread();
  const int words = static_cast<int>(f.l.words), block_words = static_cast<int>(f.block_words);
  for (int c = thread; c < chains; c += kThreads) bad[c] = 0;
  __syncthreads();
  for (int i = warp_index(); i < chains * block_words; i += kThreads / kWarpSize) {
    const int c = i / block_words;
    if (read_word(f, code, first + c, i - c * block_words, states + i) && lane_index() == 0)
      atomicOr(&bad[c], kIsingNotStates);
  }
  for (int c = 0; c < chains; ++c)
    if (bad_temperature(f, first + c, thread, kThreads)) atomicOr(&bad[c], kIsingBadBeta);
  __syncthreads();
  if (f.status)
    for (int c = thread; c < chains; c += kThreads)
      if (bad[c]) atomicOr(f.status, bad[c]);

  const uint64_t seed = static_cast<uint64_t>(*f.seed);
  for (int64_t s = 0; s < f.n_sweeps; ++s) {
    if (s == 0 || f.beta_sweeps > 1) {
      for (int i = thread; i < chains * kEntries<kKind>; i += kThreads) {
        const int c = i / kEntries<kKind>;
        table[i] = table_entry<kKind>(f, i % kEntries<kKind>, bad[c] ? 0.0f : f.beta_of(s, first + c));
      }
      __syncthreads();
    }
    const uint32_t step = f.first_step + static_cast<uint32_t>(s);
    for (int colour = 0; colour < 2; ++colour) {
      for (int i = thread; i < chains * words; i += kThreads) {
        const int c = i / words;
        draw_word<kKind>(f, states + c * block_words, table + c * kEntries<kKind>, colour, i - c * words, first + c,
                         step, seed);
      }
      __syncthreads();
    }
  }
  for (int i = warp_index(); i < chains * 2 * words; i += kThreads / kWarpSize) {
    const int c = i / (2 * words), word = i - c * 2 * words;
    write_word(f, code, first + c, word, states[c * block_words + word], bad[c] != 0);
  }
}

template <class E>
__global__ void lattice_read_kernel(DeviceLattice f, SpinCode<E> code) {
  const int64_t warps = grid_threads() / kWarpSize;
  for (int64_t i = grid_thread() / kWarpSize; i < f.n * f.block_words; i += warps) {
    const int64_t chain = i / f.block_words, word = i % f.block_words;
    int fault = read_word(f, code, chain, word, f.states + i) ? kIsingNotStates : 0;
    if (word == 0 && __any_sync(kFullWarp, bad_temperature(f, chain, lane_index(), kWarpSize))) fault |= kIsingBadBeta;
    if (fault && lane_index() == 0) {
      atomicOr(&f.bad[chain], fault);
      if (f.status) atomicOr(f.status, fault);
    }
  }
}

template <LatticeKind kKind>
__global__ void __launch_bounds__(kThreads) lattice_sweep_kernel(DeviceLattice f, int64_t sweep, int colour) {
  GF_SHARED(LatticeThreshold, table, [kEntries<kKind>]);
  const unsigned blocks = static_cast<unsigned>((f.l.words + kThreads - 1) / kThreads);  // of a chain
  const unsigned chain = blockIdx.x / blocks;
  if (block_thread() < kEntries<kKind>)
    table[block_thread()] = table_entry<kKind>(f, block_thread(), f.bad[chain] ? 0.0f : f.beta_of(sweep, chain));
  __syncthreads();
  const int at = static_cast<int>((blockIdx.x - chain * blocks) * kThreads) + block_thread();
  if (at < f.l.words)
    draw_word<kKind>(f, f.states + chain * f.block_words, table, colour, at, chain,
                     f.first_step + static_cast<uint32_t>(sweep), static_cast<uint64_t>(*f.seed));
}

template <class E>
__global__ void lattice_write_kernel(DeviceLattice f, SpinCode<E> code) {
  const int64_t warps = grid_threads() / kWarpSize, words = 2 * f.l.words;
  for (int64_t i = grid_thread() / kWarpSize; i < f.n * words; i += warps) {
    const int64_t chain = i / words, word = i % words;
    write_word(f, code, chain, word, f.states[chain * f.block_words + word], f.bad[chain] != 0);
  }
}

template <LatticeKind kKind, class E>
void run_lattices(const LatticeGibbs& f, const SpinCode<E>& code) {
  const DeviceLattice lattice(f);
  const int64_t block_bytes = 4 * lattice.block_words;
  if (block_bytes <= kLatticeShared) {
    if (f.status)
      launch("lattice_gibbs", lattice_clear_kernel, 1, 32, 0, f.stream, f.status, static_cast<int*>(nullptr), 0);
    const int64_t bytes = block_bytes + kEntries<kKind> * sizeof(LatticeThreshold) + sizeof(int);
    int64_t chains = (kThreads + lattice.l.words - 1) / lattice.l.words;
    chains = chains < kLatticeShared / bytes ? chains : kLatticeShared / bytes;
    chains = chains < 1 ? 1 : chains < f.n ? chains : f.n;
    launch("lattice_gibbs", lattice_kernel<kKind, E>, static_cast<unsigned>((f.n + chains - 1) / chains), kThreads,
           static_cast<std::size_t>(chains * bytes), f.stream, lattice, code, static_cast<int>(chains));
    return;
  }
  launch("lattice_gibbs", lattice_clear_kernel, blocks_for(f.n, kThreads), kThreads, 0, f.stream, f.status, lattice.bad,
         f.n);
  constexpr int64_t kLargest = 0x7fffffff;
  const int64_t blocks = f.n * ((lattice.l.words + kThreads - 1) / kThreads);
  if (blocks > kLargest) throw std::invalid_argument("lattice_gibbs: more than 2^43 sites in a call");
  launch("lattice_gibbs", lattice_read_kernel<E>, blocks_for(f.n * lattice.block_words, kThreads / kWarpSize), kThreads,
         0, f.stream, lattice, code);
  for (int64_t s = 0; s < f.n_sweeps; ++s)
    for (int colour = 0; colour < 2; ++colour)
      launch("lattice_gibbs", lattice_sweep_kernel<kKind>, static_cast<unsigned>(blocks), kThreads, 0, f.stream,
             lattice, s, colour);
  launch("lattice_gibbs", lattice_write_kernel<E>, blocks_for(f.n * 2 * lattice.l.words, kThreads / kWarpSize),
         kThreads, 0, f.stream, lattice, code);
}

}  // namespace

void lattice_gibbs(const LatticeGibbs& f) {
  const Lattice l = f.lattice();
  if (f.n == 0 || l.words == 0) return;
  const LatticeKind kind = LatticeEnergy(f).kind(l);
  dispatch_spins(f.state, f.spin, [&](auto code) {
    using E = decltype(code.up);
    kind == LatticeKind::even      ? run_lattices<LatticeKind::even, E>(f, code)
    : kind == LatticeKind::uniform ? run_lattices<LatticeKind::uniform, E>(f, code)
                                   : run_lattices<LatticeKind::general, E>(f, code);
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
