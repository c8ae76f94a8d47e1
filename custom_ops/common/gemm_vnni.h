// Matrix products by int8 weights on AVX-512 VNNI, whose one instruction adds up products of 8-bit integers. See
// gemm.h.
#pragma once

#include "common/gemm.h"

namespace onnxfuse::vnni {

// Whether to use VNNI for this many rows.
bool wanted(int64_t rows, DType weight);

void cut(TileLayout& layout);

// Bytes of all tiles.
int64_t bytes(const TileLayout& layout);

void write_tiles(const TileLayout& layout, const TileSource& from, void* tiles);

void multiply(const TileLayout& layout, const void* a, const Weight* weights, int64_t count, const GemmBlock& block);

}  // namespace onnxfuse::vnni
