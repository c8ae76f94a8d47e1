// All that the adapter of an operator includes.
#pragma once

#include "common/registry.h"
#include "common/simd_target.h"
