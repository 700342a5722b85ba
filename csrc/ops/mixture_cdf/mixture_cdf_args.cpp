#include <stdexcept>

#include "common/shared_rows_args.h"
#include "ops/mixture_cdf/mixture_cdf.h"
#include "ops/mixture_cdf/mixture_cdf_rows.h"

namespace gf {

namespace {

template <class Args>
void describe_sizes(const Description<Args>& k) {
  k.size(GF(size.groups)), k.size(GF(size.numbers)), k.size(GF(size.rows));
  k.size(GF(size.components)), k.size(GF(size.packed));
  k.type(GF(dtype));
}

template <class Args>
void describe_parameters(const Description<Args>& k) {
  k.tensor(GF(logits), "groups rows components").optional();
  k.tensor(GF(means), "groups rows components").optional();
  k.tensor(GF(log_scales), "groups rows components").optional();
  k.tensor(GF(params), "groups rows packed").optional();
}

template <class Args>
void describe_options(const Description<Args>& k) {
  k.scalar(GF(size.inner));
  k.scalar(GF(options.normal));
  k.scalar(GF(options.output));
  k.scalar(GF(options.inverse));
}

// Sizes and the stride of three tensors of parameters or, where there are no logits, of a packed one.
template <class Args>
bool is_packed(Args& a) {
  MixtureSizes& s = a.size;
  const bool packed = check_shared_rows("mixture_cdf", s, a.params, a.logits && a.means && a.log_scales, s.components,
                                        "logits, means and log_scales");
  if (packed) {
    s.components = s.packed / 3;
    if (s.packed != 3 * s.components) throw std::invalid_argument("params: expected rows of 3 K numbers");
  }
  if (s.components < 1 || s.components > (1 << 24))
    throw std::invalid_argument("mixture_cdf: expected 1 to 2^24 components");
  s.stride = packed ? s.packed : s.components;
  return packed;
}

// Nanoseconds of a call, from those of a number and of one of its components; the inverse evaluates it some seven
// times.
double work(const MixtureSizes& s, const MixtureOptions& o, double number, double component) {
  const double times = o.inverse && number < 10 ? 7 : 1;
  return static_cast<double>(s.count) * times * (number + component * s.components);
}

}  // namespace

GF_KERNEL(mixture_cdf_forward, MixtureForward) {
  describe_sizes(k);
  k.tensor(GF(x), "groups numbers");
  describe_parameters(k);
  describe_options(k);
  k.tensor(GF(y), "groups numbers");
  k.tensor(GF(log_det), "groups numbers").sum();
  k.prepare([](Args& a, Backend) {
    if (is_packed(a)) unpack<const char*>(a.params, a.size.components, a.dtype, &a.logits, &a.means, &a.log_scales);
  });
  k.work([](const Args& a) { return work(a.size, a.options, 5, 2); });
}

GF_KERNEL(mixture_cdf_backward, MixtureBackward) {
  describe_sizes(k);
  k.tensor(GF(x), "groups numbers");
  describe_parameters(k);
  k.tensor(GF(y), "groups numbers").optional();
  k.tensor(GF(grad_y), "groups numbers");
  k.tensor(GF(grad_log_det), "groups numbers").sum();
  describe_options(k);
  k.tensor(GF(grad_x), "groups numbers");
  k.tensor(GF(grad_logits), "groups rows components").optional();
  k.tensor(GF(grad_means), "groups rows components").optional();
  k.tensor(GF(grad_log_scales), "groups rows components").optional();
  k.tensor(GF(grad_params), "groups rows packed").optional();
  k.workspace(GF(workspace), DType::f64,
              [](const Args& a, Backend backend) -> int64_t { return mixture_workspace(a.size, on_gpu(backend)); });
  k.prepare([](Args& a, Backend) {
    const bool packed = is_packed(a);
    check_packed_alike("mixture_cdf_backward", a.size, packed, a.grad_params,
                       a.grad_logits && a.grad_means && a.grad_log_scales);
    if (a.options.inverse && a.size.count > 0 && !a.y)
      throw std::invalid_argument("mixture_cdf_backward: the inverse needs its y");
    if (packed) {
      unpack<const char*>(a.params, a.size.components, a.dtype, &a.logits, &a.means, &a.log_scales);
      unpack<char*>(a.grad_params, a.size.components, a.dtype, &a.grad_logits, &a.grad_means, &a.grad_log_scales);
    }
  });
  k.work([](const Args& a) { return work(a.size, a.options, 12, 6); });
}

}  // namespace gf
