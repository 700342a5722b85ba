#include <stdexcept>
#include <string>
#include <vector>

#include "common/kernel.h"
#include "ops/channel_affine/channel_affine.h"

namespace gf {

namespace {

template <class Args>
void describe_parameters(const Description<Args>& k) {
  k.tensor(GF(map.lower), "c c").optional();
  k.tensor(GF(map.upper), "c c").optional();
  k.tensor(GF(map.diag), "c").optional();
  k.tensor(GF(map.sign), "c").optional();
  k.tensor(GF(map.permutation), "c").optional();
  k.tensor(GF(map.log_scale), "c").optional();
  k.tensor(GF(map.shift), "c").optional();
  k.tensor(GF(map.bias), "c").optional();
  k.scalar(GF(map.softplus));
  k.scalar(GF(map.min_diag));
  k.scalar(GF(map.inverse));
  k.scalar(GF(map.channels_last));
}

// A permutation that can be read without waiting is checked; on a GPU results are NaN where it is none.
void check_map(ChannelMap& f, Backend b) {
  if (f.image() == 1) f.channels_last = true;  // the same memory
  const bool some = f.lower != nullptr || f.upper != nullptr || f.diag != nullptr;
  if (some && (f.lower == nullptr || f.upper == nullptr || f.diag == nullptr) && f.c > 0)
    throw std::invalid_argument("lower: expected lower, upper and diag together");
  if (f.permutation == nullptr || on_gpu(b)) return;
  std::vector<char> seen(static_cast<std::size_t>(f.c));
  bool valid = true;
  for (int64_t i = 0; i < f.c && valid; ++i) {
    const int64_t at = f.permutation[i];
    valid = at >= 0 && at < f.c && !seen[static_cast<std::size_t>(at)];
    if (valid) seen[static_cast<std::size_t>(at)] = 1;
  }
  if (valid) return;
  std::string text = "permutation: got [";
  for (int64_t i = 0; i < f.c; ++i) text += (i > 0 ? ", " : "") + std::to_string(f.permutation[i]);
  throw std::invalid_argument(text + "], want each of 0 to " + std::to_string(f.c - 1) + " once");
}

// Nanoseconds of `products` with triangles on one thread.
double work_of(const ChannelMap& f, double products) {
  const double c = static_cast<double>(f.c);
  return static_cast<double>(f.pixels()) * (0.6 * c + (f.lower != nullptr ? 0.03 * products * c * c : 0));
}

}  // namespace

GF_KERNEL(channel_affine_forward, ChannelForward) {
  k.size(GF(map.n)), k.size(GF(map.c)), k.size(GF(map.h)), k.size(GF(map.w));
  k.type(GF(map.dtype));
  k.tensor(GF(input), "n c h w").shape_if(GF(map.channels_last), "n h w c");
  describe_parameters(k);
  k.tensor(GF(output), "n c h w").shape_if(GF(map.channels_last), "n h w c");
  k.tensor(GF(log_det), "n").sum();
  k.prepare([](Args& a, Backend b) { check_map(a.map, b); });
  k.work([](const Args& a) { return work_of(a.map, 1); });
}

GF_KERNEL(channel_affine_backward, ChannelBackward) {
  k.size(GF(map.n)), k.size(GF(map.c)), k.size(GF(map.h)), k.size(GF(map.w));
  k.type(GF(map.dtype));
  k.tensor(GF(grad_output), "n c h w").shape_if(GF(map.channels_last), "n h w c");
  k.tensor(GF(grad_log_det), "n").sum();
  k.tensor(GF(kept), "n c h w").shape_if(GF(map.channels_last), "n h w c");
  describe_parameters(k);
  k.tensor(GF(grad_input), "n c h w").shape_if(GF(map.channels_last), "n h w c");
  k.tensor(GF(grad_lower), "c c").optional();
  k.tensor(GF(grad_upper), "c c").optional();
  k.tensor(GF(grad_diag), "c").optional();
  k.tensor(GF(grad_log_scale), "c").optional();
  k.tensor(GF(grad_shift), "c").optional();
  k.tensor(GF(grad_bias), "c").optional();
  k.prepare([](Args& a, Backend b) { check_map(a.map, b); });
  k.workspace(GF(workspace), DType::other, [](const Args& a, Backend b) {
    const bool gpu = on_gpu(b);
    return (pixel_chunks(a.map.pixels(), gpu) + gpu) * channel_sums(a.map);
  });
  k.work([](const Args& a) { return work_of(a.map, 2.5); });
}

}  // namespace gf
