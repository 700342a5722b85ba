#include "common/row_op_args.h"
#include "ops/radial/radial.h"

namespace gf {

GF_ROW_OP(radial, Radial) {
  k.size(GF(k));
  k.parameter(GF(center), GF(grad_center), "k d");
  k.parameter(GF(alpha), GF(grad_alpha), "k");
  k.parameter(GF(beta), GF(grad_beta), "k");
  k.scalar(GF(inverse));
  k.work([](const Args& f) { return static_cast<double>(f.n * f.k) * (4 + 0.2 * f.d); });
}

}  // namespace gf
