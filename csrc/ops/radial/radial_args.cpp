#include "common/kernel.h"
#include "common/row_op.h"
#include "ops/radial/radial.h"

namespace gf {

template <class Args>
static void describe_inputs(const Description<Args>& k) {
  k.size(GF(n)), k.size(GF(d)), k.size(GF(k));
  k.type(GF(dtype));
  k.tensor(GF(input), "n d");
  k.tensor(GF(center), "k d");
  k.tensor(GF(alpha), "k");
  k.tensor(GF(beta), "k");
}

GF_KERNEL(radial_forward, Radial) {
  describe_inputs(k);
  k.scalar(GF(inverse));
  k.tensor(GF(output), "n d");
  k.tensor(GF(log_det), "n").sum();
  k.work([](const Args& f) { return static_cast<double>(f.n * f.k) * (4 + 0.15 * f.d); });
}

GF_KERNEL(radial_backward, Radial) {
  describe_inputs(k);
  k.tensor(GF(grad_output), "n d");
  k.tensor(GF(grad_log_det), "n").sum();
  k.scalar(GF(inverse));
  k.tensor(GF(grad_input), "n d");
  k.tensor(GF(grad_center), "k d");
  k.tensor(GF(grad_alpha), "k");
  k.tensor(GF(grad_beta), "k");
  k.workspace(GF(workspace), DType::other, row_op_workspace<Args>);
  k.work([](const Args& f) { return static_cast<double>(f.n * f.k) * (8 + 0.4 * f.d); });
}

}  // namespace gf
