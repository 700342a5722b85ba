// Annealed importance sampling of an RBM on the GPU. A block owns 16 runs for all betas, as rbm_gibbs its chains.
#include "common/states.h"
#include "ops/rbm/rbm_quantise.cuh"
#include "ops/rbm/rbm_sweep.cuh"
#include "ops/rbm_ais/rbm_ais.h"
#include "ops/rbm_ais/rbm_ais_math.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

constexpr int kRuns = 16;

struct RunArgs {
  RbmDevice machine;
  const void* v;
  void* out_v;
  const float *base, *betas, *next_betas;
  const int64_t* slope;
  double slope_unit;
  const double* log_weights;
  double* out_log_weights;
  const int64_t* seed;
  int64_t n_steps;
  uint32_t first_run, first_step;
};

template <class E>
__global__ void __launch_bounds__(kSweepThreads) rbm_ais_kernel(RunArgs f, StateCode<E> code) {
  const RbmSizes size = f.machine.size;
  const int words_v = static_cast<int>(f.machine.words_v()), words_h = static_cast<int>(f.machine.words_h());
  const Bits v{dynamic_shared<unsigned>(), odd(words_v)};
  const Bits h{v.words + kRuns * v.stride, odd(words_h)};
  GF_SHARED(double, log_weight, [kRuns]);
  GF_SHARED(unsigned long long, sums, [kRuns]);  // of y: exact, in any order
  const int lane = lane_index();
  const int64_t run0 = static_cast<int64_t>(blockIdx.x) * kRuns;
  const bool lost = f.machine.scalars->lost != 0;

  for (int c = warp_index(); c < kRuns; c += kSweepWarps) {
    const bool exists = run0 + c < size.n;
    const E* in = static_cast<const E*>(f.v) + (run0 + c) * size.nv;
    for (int w = 0; w < words_v; ++w) {
      const int64_t unit = static_cast<int64_t>(w) * kRbmWord + lane;
      const unsigned bits = __ballot_sync(kFullWarp, exists && unit < size.nv && in[unit] == code.one);
      if (lane == 0) v.at(c, w) = bits;
    }
    if (lane == 0) {
      log_weight[c] = exists && f.log_weights ? f.log_weights[run0 + c] : 0.0;
      sums[c] = 0;
    }
  }
  __syncthreads();

  if (!lost) {
    const int e = f.machine.scalars->exponent;
    const float scale = ais_scale(e);
    const double unit = power_of_two<double>(e + 1);
    const uint64_t seed = static_cast<uint64_t>(*f.seed);
    const uint32_t first = f.first_run + static_cast<uint32_t>(run0);
    const Bits none{nullptr, 0};
    const HalfSweep up{v, h, none, words_v, words_h, size.nh, f.machine.weights_h, f.machine.bias_h, kStreamAisHidden};
    const HalfSweep down{
        h, v, none, words_h, words_v, size.nv, f.machine.weights_v, f.machine.bias_v, kStreamAisVisible};
    for (int64_t s = 0; s < f.n_steps; ++s) {
      const float beta0 = f.betas[s], beta1 = f.next_betas[s];
      const float difference = rounded_add(beta1, -beta0), rest = rounded_add(1.0f, -beta1);
      const uint32_t step = f.first_step + static_cast<uint32_t>(s);
      int64_t own[2] = {0, 0};  // of the rows lane / 4 and lane / 4 + 8
      half_sweep<1>(up, seed, first, step, [&](int field, int, int row, int, uint32_t word) {
        const float z = rounded_mul(rounded_mul(static_cast<float>(field), scale), beta1);
        const float t = odds_against<ScalarLane>(z);
        own[row] += ais_increment<ScalarLane>(field, scale, t, beta0, difference);
        return gibbs_accept_logit<ScalarLane>(z, t, word);
      });
      GF_UNROLL
      for (int row = 0; row < 2; ++row) atomicAdd(&sums[lane / 4 + 8 * row], static_cast<unsigned long long>(own[row]));
      __syncthreads();
      for (int c = warp_index(); c < kRuns; c += kSweepWarps) {
        long long slopes = 0;
        for (int w = 0; w < words_v; ++w)
          if (v.at(c, w) >> lane & 1u) slopes += f.slope[static_cast<int64_t>(w) * kRbmWord + lane];
        slopes = warp_sum(slopes);
        if (lane == 0) {
          const double d = rounded_add(static_cast<double>(beta1), -static_cast<double>(beta0));
          log_weight[c] = ais_log_weight(log_weight[c], d, static_cast<int64_t>(sums[c]), unit, slopes, f.slope_unit);
          sums[c] = 0;
        }
      }
      __syncthreads();
      half_sweep<1>(down, seed, first, step, [&](int field, int, int, int at, uint32_t word) {
        const float offset = at < size.nv ? rounded_mul(rest, f.base[at]) : 0.0f;
        const float z = ais_visible_logit<ScalarLane>(field, scale, beta1, offset);
        return gibbs_accept_logit<ScalarLane>(z, odds_against<ScalarLane>(z), word);
      });
      __syncthreads();
    }
  }

  for (int c = warp_index(); c < kRuns && run0 + c < size.n; c += kSweepWarps) {
    E* to = static_cast<E*>(f.out_v) + (run0 + c) * size.nv;
    if (lost) {
      for (int64_t i = lane; i < size.nv; i += kWarpSize) to[i] = code.nan;
    } else {
      store_states(to, size.nv, v, words_v, c, code.one);
    }
    if (lane == 0) f.out_log_weights[run0 + c] = lost ? static_cast<double>(NAN) : log_weight[c];
  }
}

}  // namespace

void rbm_ais(const RbmAis& f) {
  RbmGibbs described{};
  described.size = f.size;
  described.W = f.W;
  described.vbias = f.vbias;
  described.hbias = f.hbias;
  described.workspace = f.workspace;
  const RbmDevice machine(described, RbmWorkspace(f.size));
  f.dtype == DType::f64 ? launch_quantise<double>(machine, f.stream) : launch_quantise<float>(machine, f.stream);

  constexpr int64_t kSharedLimit = 64 * 1024;  // every architecture since Volta has it
  const int64_t shared = kRuns * 4 * ((machine.words_v() | 1) + (machine.words_h() | 1));
  if (shared > kSharedLimit - 1024)
    throw std::invalid_argument(
        "rbm_ais: the states of 16 runs do not fit the GPU's shared memory; visible and hidden units together may be "
        "about 30,000");
  const RunArgs args{machine,      f.v,           f.out_v,           f.base, f.betas,   f.next_betas, f.slope,
                     f.slope_unit, f.log_weights, f.out_log_weights, f.seed, f.n_steps, f.first_run,  f.first_step};
  const unsigned blocks = static_cast<unsigned>((f.size.n + kRuns - 1) / kRuns);
  dispatch_wide_state(f.dtype, [&](auto code) {
    launch("rbm_ais", rbm_ais_kernel<decltype(code.one)>, blocks, kSweepThreads, static_cast<std::size_t>(shared),
           f.stream, args, code);
  });
}

}  // namespace GF_BACKEND
}  // namespace gf
