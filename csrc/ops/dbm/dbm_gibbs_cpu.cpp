// Gibbs sampling of a deep Boltzmann machine on the CPU: states are packed to bits, swept layer by layer
// (ops/rbm/rbm_sweep.h) and unpacked.
#include <cstdint>

#include "common/parallel.h"
#include "ops/dbm/dbm.h"
#include "ops/dbm/dbm_quantise.h"
#include "ops/rbm/rbm_bits.h"
#include "ops/rbm/rbm_sweep.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

// The words of a layer of one chain, kLanes apart, in a buffer of its side.
inline uint32_t* words_of(const DbmGibbs& f, const DbmWorkspace& at, const int64_t (&buffer)[2], int l, int64_t chain) {
  const int64_t words = at.side_words[l % 2];
  return reinterpret_cast<uint32_t*>(f.workspace + buffer[l % 2]) + (chain / kLanes * words + at.word[l]) * kLanes +
         chain % kLanes;
}

// States of chains [begin, end) as bits, with their beta and whether they can be drawn at all.
template <class E>
int32_t load_chains(const DbmGibbs& f, const DbmWorkspace& at, const StateCode<E>& code, int64_t begin, int64_t end) {
  float* betas = reinterpret_cast<float*>(f.workspace + at.beta);
  int32_t status = 0;
  for (int64_t c = begin; c < end; ++c) {
    const bool exists = c < f.n;
    E bad = 0;
    for (int l = 0; l < at.layers; ++l) {
      const E* in = static_cast<const E*>(f.states) + c * f.units + at.first[l];
      uint32_t* out = words_of(f, at, at.state, l, c);
      for (int64_t w = 0; w < 2 * at.panels[l]; ++w)
        out[w * kLanes] = exists ? pack_word(in + w * kRbmWord, word_width(at.units[l], w), code, bad) : 0;
    }
    const float beta = exists ? f.beta[f.beta_per_chain ? c : 0] : 0.0f;
    const bool bad_beta = magnitude_bits(beta) >= 0x7f800000u;
    betas[c] = bad_beta ? 0.0f : beta;
    f.workspace[at.bad + c] = bad != 0 || bad_beta;
    status |= (bad != 0 ? kRbmNotBinary : 0) | (bad_beta ? kRbmBadBeta : 0);
  }
  return status;
}

template <class E>
void store_chains(const DbmGibbs& f, const DbmWorkspace& at, const StateCode<E>& code, bool lost, int64_t begin,
                  int64_t end) {
  for (int64_t c = begin; c < end; ++c) {
    const bool bad = lost || f.workspace[at.bad + c] != 0;
    for (int l = 0; l < at.layers; ++l) {
      const uint32_t* in = words_of(f, at, at.state, l, c);
      E* x = static_cast<E*>(f.out) + c * f.units + at.first[l];
      for (int64_t w = 0; w * kRbmWord < at.units[l]; ++w)
        unpack_word(x + w * kRbmWord, word_width(at.units[l], w), bad ? ~0u : in[w * kLanes],
                    bad ? code.nan : code.one);
    }
  }
}

// The bits of the mask, in the layout of the states; one group serves all where all chains share the mask.
void pack_clamp(const DbmGibbs& f, const DbmWorkspace& at) {
  const int64_t chains = f.clamp_per_chain ? at.chains : kLanes;
  parallel_for(chains, 64, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const bool exists = !f.clamp_per_chain || c < f.n;
      for (int l = 0; l < at.layers; ++l) {
        const uint8_t* mask = f.clamp + (f.clamp_per_chain && exists ? c * f.units : 0) + at.first[l];
        uint32_t* out = words_of(f, at, at.clamp, l, c);
        for (int64_t w = 0; w < 2 * at.panels[l]; ++w) {
          uint32_t bits = 0;
          for (int64_t i = 0; exists && i < word_width(at.units[l], w); ++i)
            bits |= static_cast<uint32_t>(mask[w * kRbmWord + i] != 0) << i;
          out[w * kLanes] = bits;
        }
      }
    }
  });
}

}  // namespace

void dbm_gibbs(const DbmGibbs& f) {
  *f.status = 0;
  if (f.n == 0) return;
  const DbmWorkspace at(f);
  constexpr int64_t kBlock = 64;
  const int e = f.weight == DType::f64 ? dbm_quantise<double>(f, at) : dbm_quantise<float>(f, at);
  const bool lost = e == INT32_MIN;

  int32_t status = lost ? kRbmNotFinite : 0;
  dispatch_state(f.state, [&](auto code) {
    parallel_for(at.chains, kBlock, [&](int64_t begin, int64_t end) {
      const int32_t s = load_chains(f, at, code, begin, end);
      if (s) __atomic_fetch_or(&status, s, __ATOMIC_RELAXED);
    });
  });
  *f.status = status;
  if (f.clamp) pack_clamp(f, at);

  const int64_t groups = (f.n + kLanes - 1) / kLanes;
  const auto sweep_layer = [&](int l, uint32_t step) {
    const int side = l % 2;
    const int64_t first_input = l > 0 ? at.word[l - 1] : at.word[l + 1];
    RbmHalfSweep h{};
    h.in = reinterpret_cast<const uint32_t*>(f.workspace + at.state[1 - side]) + first_input * kLanes;
    h.out = reinterpret_cast<uint32_t*>(f.workspace + at.state[side]) + at.word[l] * kLanes;
    h.in_words = 2 * at.inputs[l];
    h.out_words = 2 * at.panels[l];
    h.in_stride = at.side_words[1 - side] * kLanes;
    h.out_stride = at.side_words[side] * kLanes;
    h.n_out = at.units[l];
    h.chains = f.n;
    h.weights = f.workspace + at.weights[l];
    h.bias = f.workspace + at.bias[l];
    h.beta = reinterpret_cast<const float*>(f.workspace + at.beta);
    if (f.clamp) h.clamp = reinterpret_cast<const uint32_t*>(f.workspace + at.clamp[side]) + at.word[l] * kLanes;
    h.clamp_stride = f.clamp_per_chain ? h.out_stride : 0;
    h.scale = power_of_two<float>(e < 100 ? e : 100);
    h.seed = static_cast<uint64_t>(*f.seed);
    h.first_chain = f.first_chain;
    h.step = step;
    h.stream = kStreamLayer + static_cast<uint32_t>(l);
    run_sweep(h, groups);
  };
  for (int64_t s = 0; s < f.n_steps && !lost; ++s)
    for (const int side : {1, 0})
      for (int l = side; l < at.layers; l += 2)
        if (!(f.held >> l & 1)) sweep_layer(l, f.first_step + static_cast<uint32_t>(s));

  dispatch_state(f.state, [&](auto code) {
    parallel_for(f.n, kBlock, [&](int64_t begin, int64_t end) { store_chains(f, at, code, lost, begin, end); });
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
