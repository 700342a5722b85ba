// What a .cu file finds without an include under nvcc, for a host compiler with GF_SIMT.
#pragma once

#include "common/simt/collectives.h"
#include "common/simt/intrinsics.h"
#include "common/simt/runtime.h"
#include "common/simt/types.h"
