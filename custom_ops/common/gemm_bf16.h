// Matrix products on VDPBF16PS (AVX512_BF16), one instruction of which adds two products of bfloat16 to each of 16
// sums. See gemm.h.
#pragma once

#include "common/gemm.h"

namespace onnxfuse::bf16 {

// Whether to use it for this many rows.
bool wanted(int64_t rows, DType weight);

void cut(TileLayout& layout, DType a);

void write_tiles(const TileLayout& layout, const TileSource& from, void* tiles);

// Bytes of the scratch that `multiply` needs.
inline constexpr int64_t kScratchBytes = 16 * 1024;

void multiply(const TileLayout& layout, const void* a, const Weight* weights, int64_t count, const GemmBlock& block,
              void* scratch);

}  // namespace onnxfuse::bf16
