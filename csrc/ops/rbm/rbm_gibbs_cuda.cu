// Block Gibbs sampling of an RBM on the GPU. A block owns 16 or 32 chains for all steps: their states are bits in
// shared memory, and only the weights are read, from the L2 cache. Fields are exact integers: three int8 products on
// tensor cores (states are 0 or 1, weights are split into signed bytes), put together in int32.
#include "common/states.h"
#include "ops/rbm/rbm_quantise.cuh"
#include "ops/rbm/rbm_sweep.cuh"

namespace gf {
inline namespace GF_BACKEND {
namespace {

struct ChainArgs {
  RbmDevice machine;
  const void* v;
  void *out_v, *out_h;
  const float* beta;
  bool beta_per_chain;
  const uint8_t* clamp;
  bool clamp_per_chain;
  const int64_t* seed;
  int64_t n_steps;
  uint32_t first_chain, first_step;
};

template <class E, int kTiles>
__global__ void __launch_bounds__(kSweepThreads) rbm_gibbs_kernel(ChainArgs f, StateCode<E> code) {
  constexpr int kChains = 16 * kTiles;
  const RbmSizes size = f.machine.size;
  const int words_v = static_cast<int>(f.machine.words_v()), words_h = static_cast<int>(f.machine.words_h());
  const Bits v{dynamic_shared<unsigned>(), odd(words_v)};
  const Bits h{v.words + kChains * v.stride, odd(words_h)};
  const Bits held{f.clamp ? h.words + kChains * h.stride : nullptr, v.stride};
  GF_SHARED(float, beta, [kChains]);
  GF_SHARED(int, bad, [kChains]);
  const int lane = lane_index();
  const int64_t chain0 = static_cast<int64_t>(blockIdx.x) * kChains;
  const bool lost = f.machine.scalars->lost != 0;

  for (int c = warp_index(); c < kChains; c += kSweepWarps) {
    const int64_t chain = chain0 + c;
    const bool exists = chain < size.n;
    const E* in = static_cast<const E*>(f.v) + chain * size.nv;
    const uint8_t* mask = f.clamp + (f.clamp_per_chain ? chain * size.nv : 0);
    bool wrong = false;
    for (int w = 0; w < words_v; ++w) {
      const int64_t unit = static_cast<int64_t>(w) * kRbmWord + lane;
      const bool inside = exists && unit < size.nv;
      const E x = inside ? in[unit] : E(0);
      const bool on = x == code.one;
      wrong = wrong || (!on && (x & static_cast<E>(~code.sign)) != 0);
      const unsigned bits = __ballot_sync(kFullWarp, on);
      const unsigned fixed = f.clamp ? __ballot_sync(kFullWarp, inside && mask[unit] != 0) : 0u;
      if (lane == 0) {
        v.at(c, w) = bits;
        if (f.clamp) held.at(c, w) = fixed;
      }
    }
    const bool not_binary = __any_sync(kFullWarp, wrong) != 0;
    if (lane == 0) {
      const float value = exists ? f.beta[f.beta_per_chain ? chain : 0] : 0.0f;
      const bool bad_beta = magnitude_bits(value) >= 0x7f800000u;
      beta[c] = bad_beta ? 0.0f : value;
      bad[c] = not_binary || bad_beta;
      const int status = (not_binary ? kRbmNotBinary : 0) | (bad_beta ? kRbmBadBeta : 0);
      if (status) atomicOr(f.machine.status, status);
    }
  }
  __syncthreads();

  if (!lost) {
    const int e = f.machine.scalars->exponent;
    const float scale = power_of_two<float>(e < 100 ? e : 100);
    const uint64_t seed = static_cast<uint64_t>(*f.seed);
    const uint32_t first = f.first_chain + static_cast<uint32_t>(chain0);
    const HalfSweep up{
        v, h, Bits{nullptr, 0}, words_v, words_h, size.nh, f.machine.weights_h, f.machine.bias_h, kStreamRbmHidden};
    const HalfSweep down{
        h, v, held, words_h, words_v, size.nv, f.machine.weights_v, f.machine.bias_v, kStreamRbmVisible};
    for (int64_t s = 0; s < f.n_steps; ++s) {
      const uint32_t step = f.first_step + static_cast<uint32_t>(s);
      half_sweep<kTiles>(up, beta, scale, seed, first, step);
      __syncthreads();
      half_sweep<kTiles>(down, beta, scale, seed, first, step);
      __syncthreads();
    }
  }

  for (int c = warp_index(); c < kChains && chain0 + c < size.n; c += kSweepWarps) {
    E* to_v = static_cast<E*>(f.out_v) + (chain0 + c) * size.nv;
    E* to_h = static_cast<E*>(f.out_h) + (chain0 + c) * size.nh;
    if (lost || bad[c]) {
      for (int64_t i = lane; i < size.nv; i += kWarpSize) to_v[i] = code.nan;
      for (int64_t j = lane; j < size.nh; j += kWarpSize) to_h[j] = code.nan;
    } else {
      store_states(to_v, size.nv, v, words_v, c, code.one);
      store_states(to_h, size.nh, h, words_h, c, code.one);
    }
  }
}

}  // namespace

void rbm_gibbs(const RbmGibbs& f) {
  const RbmWorkspace at(f.size);
  const RbmDevice machine(f, at);
  f.weight == DType::f64 ? launch_quantise<double>(machine, f.stream) : launch_quantise<float>(machine, f.stream);

  constexpr int64_t kSharedLimit = 64 * 1024;  // every architecture since Volta has it
  const int64_t words = (machine.words_v() | 1) * (f.clamp ? 2 : 1) + (machine.words_h() | 1);
  // Few chains: smaller blocks, and more of them.
  const bool large = f.size.n > 2048 && 32 * words * 4 <= kSharedLimit - 1024;
  const int64_t chains = large ? 32 : 16, shared = chains * words * 4;
  if (shared > kSharedLimit - 1024)
    throw std::invalid_argument(
        "rbm_gibbs: the states of 16 chains do not fit the GPU's shared memory; visible and "
        "hidden units together may be about 30,000");
  const ChainArgs args{machine,           f.v,    f.out_v,   f.out_h,       f.beta,      f.beta_per_chain, f.clamp,
                       f.clamp_per_chain, f.seed, f.n_steps, f.first_chain, f.first_step};
  const unsigned blocks = static_cast<unsigned>((f.size.n + chains - 1) / chains);
  dispatch_state(f.state, [&](auto code) {
    using E = decltype(code.one);
    if (large)
      launch("rbm_gibbs", rbm_gibbs_kernel<E, 2>, blocks, kSweepThreads, static_cast<std::size_t>(shared), f.stream,
             args, code);
    else
      launch("rbm_gibbs", rbm_gibbs_kernel<E, 1>, blocks, kSweepThreads, static_cast<std::size_t>(shared), f.stream,
             args, code);
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
