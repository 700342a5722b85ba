// Radial flow on the CPU: what radial_math.h does with a block of rows, by the drivers of ops on rows.
#include "common/row_op_cpu.h"
#include "ops/radial/radial_math.h"

namespace gf {
inline namespace GF_BACKEND {

void radial_forward(const Radial& f) { run_forward("radial_flow", f); }
void radial_backward(const Radial& f) { run_backward("radial_flow", f); }

}  // namespace GF_BACKEND
}  // namespace gf
