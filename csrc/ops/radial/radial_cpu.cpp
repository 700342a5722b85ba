#include "common/row_op_cpu.h"
#include "ops/radial/radial_math.h"

GF_RUN_ROW_OP(radial, Radial, "radial_flow")
