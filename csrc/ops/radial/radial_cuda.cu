#include "common/row_op.cuh"
#include "ops/radial/radial_math.h"

GF_RUN_ROW_OP(radial, Radial, "radial_flow")
