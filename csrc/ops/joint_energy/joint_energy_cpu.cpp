// Joint energies on the CPU: the fields of hidden units as a half sweep sums them, added up where units are on.
#include <cstdint>

#include "common/parallel.h"
#include "common/scratch.h"
#include "ops/joint_energy/joint_energy.h"
#include "ops/rbm/rbm_bits.h"
#include "ops/rbm/rbm_quantise.h"
#include "ops/rbm/rbm_sweep.h"

namespace gf {
inline namespace GF_BACKEND {
namespace {

// A half sweep that draws nothing: it adds the fields of the units that are on in `out`.
struct EnergySweep : RbmHalfSweep {
  static constexpr bool kChainLanes = false;
  int64_t* totals;  // [groups, kLanes]

  GF_HD IntLanes accept_units(IntLanes field, FloatLanes, WordLanes, int64_t unit, int64_t chain) const {
    const uint32_t word = out[chain / kLanes * out_stride + unit / kRbmWord * kLanes + chain % kLanes];
    field &= -(IntLanes)(((WordLanes{} + (word >> (unit % kRbmWord))) >> lane_numbers()) & 1u);
    const IntLanes low = field & 0xffff, high = field >> 16;  // their sums do not leave int32
    int32_t low_sum = 0, high_sum = 0;
    for (int i = 0; i < kLanes; ++i) {
      low_sum += low[i];
      high_sum += high[i];
    }
    totals[chain] += static_cast<int64_t>(high_sum) * 65536 + low_sum;
    return IntLanes{};
  }
  GF_HD void set_word(int64_t, int64_t, WordLanes) const {}
};

// The energies of chains [begin, end).
template <class E>
int32_t block_energies(const RbmJointEnergy& f, const RbmWorkspace& at, const StateCode<E>& code, double scale,
                       int64_t begin, int64_t end) {
  const int64_t words_v = 2 * at.panels_v, words_h = 2 * at.panels_h, chains = end - begin;
  const int64_t groups = (chains + kLanes - 1) / kLanes;
  Scratch<uint32_t> v(groups * kLanes * words_v), h(groups * kLanes * words_h);
  Scratch<int64_t> totals(groups * kLanes);
  Scratch<float> beta(groups * kLanes);
  Scratch<uint8_t> bad(groups * kLanes);
  const int32_t* bias_v = f.workspace + at.bias_v;
  for (int64_t c = 0; c < groups * kLanes; ++c) {
    uint32_t* bits_v = v.get() + c / kLanes * words_v * kLanes + c % kLanes;
    uint32_t* bits_h = h.get() + c / kLanes * words_h * kLanes + c % kLanes;
    const bool exists = c < chains;
    const E* in_v = static_cast<const E*>(f.v) + (exists ? begin + c : begin) * f.size.nv;
    const E* in_h = static_cast<const E*>(f.h) + (exists ? begin + c : begin) * f.size.nh;
    E wrong = 0;
    int64_t total = 0;
    for (int64_t w = 0; w < words_v; ++w) {
      bits_v[w * kLanes] = exists ? pack_word(in_v + w * kRbmWord, word_width(f.size.nv, w), code, wrong) : 0;
      for (uint32_t bits = bits_v[w * kLanes]; bits; bits &= bits - 1)
        total += bias_v[w * kRbmWord + __builtin_ctz(bits)];
    }
    for (int64_t w = 0; w < words_h; ++w)
      bits_h[w * kLanes] = exists ? pack_word(in_h + w * kRbmWord, word_width(f.size.nh, w), code, wrong) : 0;
    totals.get()[c] = total;
    beta.get()[c] = 0.0f;
    bad.get()[c] = wrong != 0;
  }

  EnergySweep s{};
  s.in = v.get();
  s.out = h.get();
  s.in_words = words_v;
  s.out_words = words_h;
  s.in_stride = words_v * kLanes;
  s.out_stride = words_h * kLanes;
  s.n_out = f.size.nh;
  s.chains = chains;
  s.weights = f.workspace + at.weights_h;
  s.bias = f.workspace + at.bias_h;
  s.beta = beta.get();
  s.totals = totals.get();
  sweep(s, 0, groups, 0, at.panels_h);

  int32_t status = 0;
  for (int64_t c = 0; c < chains; ++c) {
    const bool wrong = bad.get()[c] != 0;
    f.energy[begin + c] =
        wrong ? bit_cast<double>(uint64_t{0x7ff8000000000000u}) : -static_cast<double>(totals.get()[c]) * scale;
    status |= wrong ? kRbmNotBinary : 0;
  }
  return status;
}

}  // namespace

void rbm_joint_energy(const RbmJointEnergy& f) {
  *f.status = 0;
  if (f.size.n == 0) return;
  const RbmGibbs machine = joint_energy_machine(f);
  const RbmWorkspace at = joint_energy_workspace(f.size);
  const int e = f.weight == DType::f64 ? rbm_quantise<double>(machine, at) : rbm_quantise<float>(machine, at);
  if (e == INT32_MIN) {
    for (int64_t c = 0; c < f.size.n; ++c) f.energy[c] = bit_cast<double>(uint64_t{0x7ff8000000000000u});
    *f.status = kRbmNotFinite;
    return;
  }
  const int64_t block = f.size.n >= 1024 ? 256 : 64;  // few chains: more of them at once
  int32_t status = 0;
  dispatch_state(f.state, [&](auto code) {
    parallel_for(f.size.n, block, [&](int64_t begin, int64_t end) {
      const int32_t s = block_energies(f, at, code, power_of_two<double>(e), begin, end);
      if (s) __atomic_fetch_or(&status, s, __ATOMIC_RELAXED);
    });
  });
  *f.status = status;
}

}  // namespace GF_BACKEND
}  // namespace gf
