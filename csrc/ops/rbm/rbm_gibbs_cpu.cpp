// Block Gibbs sampling of an RBM on the CPU: states are packed to bits, swept (rbm_sweep.h) and unpacked.
#include <cstdint>

#include "common/parallel.h"
#include "ops/rbm/rbm.h"
#include "ops/rbm/rbm_bits.h"
#include "ops/rbm/rbm_quantise.h"
#include "ops/rbm/rbm_sweep.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

// States of chains [begin, end) as bits, with their beta and whether they can be drawn at all.
template <class E>
int32_t load_chains(const RbmGibbs& f, const RbmWorkspace& at, const StateCode<E>& code, int64_t begin, int64_t end) {
  const int64_t words = 2 * at.panels_v, nv = f.size.nv;
  uint32_t* state = reinterpret_cast<uint32_t*>(f.workspace + at.state_v);
  float* betas = reinterpret_cast<float*>(f.workspace + at.beta);
  int32_t status = 0;
  for (int64_t c = begin; c < end; ++c) {
    const bool exists = c < f.size.n;
    uint32_t* out = state + c / kLanes * words * kLanes + c % kLanes;
    const E* in = static_cast<const E*>(f.v) + c * nv;
    E bad = 0;
    for (int64_t w = 0; w < words; ++w)
      out[w * kLanes] = exists ? pack_word(in + w * kRbmWord, word_width(nv, w), code, bad) : 0;
    const float beta = exists ? f.beta[f.beta_per_chain ? c : 0] : 0.0f;
    const bool bad_beta = magnitude_bits(beta) >= 0x7f800000u;
    betas[c] = bad_beta ? 0.0f : beta;
    f.workspace[at.bad + c] = bad != 0 || bad_beta;
    status |= (bad != 0 ? kRbmNotBinary : 0) | (bad_beta ? kRbmBadBeta : 0);
  }
  return status;
}

template <class E>
void store_chains(const RbmGibbs& f, const RbmWorkspace& at, const StateCode<E>& code, bool lost, int64_t begin,
                  int64_t end) {
  const auto unpack = [&](const int32_t* state, int64_t words, int64_t units, void* out, int64_t c) {
    const bool bad = lost || f.workspace[at.bad + c] != 0;
    const int32_t* in = state + c / kLanes * words * kLanes + c % kLanes;
    E* x = static_cast<E*>(out) + c * units;
    for (int64_t w = 0; w * kRbmWord < units; ++w)
      unpack_word(x + w * kRbmWord, word_width(units, w), bad ? ~0u : static_cast<uint32_t>(in[w * kLanes]),
                  bad ? code.nan : code.one);
  };
  for (int64_t c = begin; c < end; ++c) {
    unpack(f.workspace + at.state_v, 2 * at.panels_v, f.size.nv, f.out_v, c);
    unpack(f.workspace + at.state_h, 2 * at.panels_h, f.size.nh, f.out_h, c);
  }
}

// The bits of the mask, in the layout of the visible states; one group serves all where all chains share the mask.
void pack_clamp(const RbmGibbs& f, const RbmWorkspace& at) {
  const int64_t words = 2 * at.panels_v, nv = f.size.nv;
  uint32_t* out = reinterpret_cast<uint32_t*>(f.workspace + at.clamp);
  const int64_t chains = f.clamp_per_chain ? at.chains : kLanes;
  parallel_for(chains, 64, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const bool exists = !f.clamp_per_chain || c < f.size.n;
      const uint8_t* mask = f.clamp + (f.clamp_per_chain ? c * nv : 0);
      for (int64_t w = 0; w < words; ++w) {
        uint32_t bits = 0;
        for (int64_t i = 0; exists && i < word_width(nv, w); ++i)
          bits |= static_cast<uint32_t>(mask[w * kRbmWord + i] != 0) << i;
        out[(c / kLanes * words + w) * kLanes + c % kLanes] = bits;
      }
    }
  });
}

}  // namespace

void rbm_gibbs(const RbmGibbs& f) {
  *f.status = 0;
  if (f.size.n == 0) return;
  const RbmWorkspace at(f.size);
  constexpr int64_t kBlock = 64;
  const int e = f.weight == DType::f64 ? rbm_quantise<double>(f, at) : rbm_quantise<float>(f, at);
  const bool lost = e == INT32_MIN;

  int32_t status = lost ? kRbmNotFinite : 0;
  dispatch_state(f.state, [&](auto code) {
    parallel_for(at.chains, kBlock, [&](int64_t begin, int64_t end) {
      const int32_t s = load_chains(f, at, code, begin, end);
      if (s) __atomic_fetch_or(&status, s, __ATOMIC_RELAXED);
    });
  });
  *f.status = status;

  uint32_t* state_v = reinterpret_cast<uint32_t*>(f.workspace + at.state_v);
  uint32_t* state_h = reinterpret_cast<uint32_t*>(f.workspace + at.state_h);
  const uint32_t* clamp = f.clamp ? reinterpret_cast<const uint32_t*>(f.workspace + at.clamp) : nullptr;
  if (clamp) pack_clamp(f, at);
  RbmHalfSweep up{};
  up.in = state_v;
  up.out = state_h;
  up.in_words = 2 * at.panels_v;
  up.out_words = 2 * at.panels_h;
  up.in_stride = up.in_words * kLanes;
  up.out_stride = up.out_words * kLanes;
  up.n_out = f.size.nh;
  up.chains = f.size.n;
  up.weights = f.workspace + at.weights_h;
  up.bias = f.workspace + at.bias_h;
  up.beta = reinterpret_cast<const float*>(f.workspace + at.beta);
  up.scale = lost ? 0.0f : power_of_two<float>(e < 100 ? e : 100);
  up.seed = static_cast<uint64_t>(*f.seed);
  up.first_chain = f.first_chain;
  up.stream = kStreamRbmHidden;
  RbmHalfSweep down = up;
  down.in = state_h;
  down.out = state_v;
  down.in_words = up.out_words;
  down.out_words = up.in_words;
  down.in_stride = up.out_stride;
  down.out_stride = up.in_stride;
  down.n_out = f.size.nv;
  down.weights = f.workspace + at.weights_v;
  down.bias = f.workspace + at.bias_v;
  down.clamp = clamp;
  down.clamp_stride = f.clamp_per_chain ? down.out_words * kLanes : 0;
  down.stream = kStreamRbmVisible;
  const int64_t groups = (f.size.n + kLanes - 1) / kLanes;
  for (int64_t s = 0; s < f.n_steps && !lost; ++s) {
    up.step = down.step = f.first_step + static_cast<uint32_t>(s);
    run_sweep(up, groups);
    run_sweep(down, groups);
  }

  dispatch_state(f.state, [&](auto code) {
    parallel_for(f.size.n, kBlock, [&](int64_t begin, int64_t end) { store_chains(f, at, code, lost, begin, end); });
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
