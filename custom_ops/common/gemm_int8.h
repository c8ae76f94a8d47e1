// Matrix products by int8 weights in integers: on AMX, or on AVX-512 VNNI. See gemm.h.
#pragma once

#include "common/gemm.h"

namespace onnxfuse::int8 {

// Whether this machine has the instructions, for a weight of this dtype.
bool wanted(int64_t rows, DType weight);

void cut(TileLayout& layout);

// Bytes of all tiles.
int64_t bytes(const TileLayout& layout);

void write_tiles(const TileLayout& layout, const TileSource& from, void* tiles);

void multiply(const TileLayout& layout, const void* a, const Weight* weights, int64_t count, const GemmBlock& block);

}  // namespace onnxfuse::int8
