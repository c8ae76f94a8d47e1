// Matrix products on Intel AMX, whose one instruction multiplies bfloat16 tiles of 16 x 32 by 32 x 16. See gemm.h.
#pragma once

#include "common/gemm.h"

namespace onnxfuse::amx {

// Whether to use AMX for this many rows.
bool wanted(int64_t rows, DType weight);

void cut(TileLayout& layout, DType a, DType weight);

void write_tiles(const TileLayout& layout, const TileSource& from, void* tiles);

// Bytes of the scratch that `multiply` needs.
inline constexpr int64_t kScratchBytes = 48 * 1024;

void multiply(const TileLayout& layout, const void* a, const Weight* weights, int64_t count, const GemmBlock& block,
              void* scratch);

}  // namespace onnxfuse::amx
