// A block is multiplied slice by slice: 256 rows of a panel stay in the first-level cache while they are multiplied by
// all tiles of A, each with its sums in registers. The rows of weights are brought together in pairs on the way, which
// other units of the processor do meanwhile.
//
// The speed of few rows is that of the memory: their numbers are taken as the sums of two parts, like rows of their own
// in one tile. Of more rows a number is one part.
#include "common/gemm_bf16.h"

#include "common/simd_target.h"

#if ONNXFUSE_HAS_AMX

#include <array>
#include <cstring>
#include <utility>

#include "common/gemm_slices.h"
#include "common/intrinsics.h"
#include "common/prefetching.h"

namespace onnxfuse::bf16 {
namespace {

constexpr int64_t kTileRows = 12;   // of two registers of sums each
constexpr int64_t kFewRows = 7;     // two parts of which are one tile, in all the registers there are
constexpr int64_t kFewestRows = 4;  // fewer take as long with weights as float32

}  // namespace

// What every machine runs stands here, before the instructions of some are let in.

bool wanted(int64_t rows, DType weight) {
  return simd_target() == SimdTarget::kAvx512Bf16 && weight == DType::kBFloat16 && rows >= kFewestRows;
}

void cut(TileLayout& layout, DType a) {
  layout.form = TileLayout::Form::kBf16;
  layout.parts = a == DType::kBFloat16 || layout.rows > kFewRows ? 1 : 2;
  layout.tiles = (layout.rows + kTileRows - 1) / kTileRows;
  layout.tile_rows = layout.tiles == 0 ? 0 : (layout.rows + layout.tiles - 1) / layout.tiles;
}

}  // namespace onnxfuse::bf16

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,f16c")
#endif

namespace onnxfuse::bf16 {
namespace {

constexpr int64_t kSliceDepth = 256;              // 16 KB of weights
constexpr int64_t kActivationBytes = 512 * 1024;  // of A that the second-level cache holds beside the sums

#include "common/avx512_load.h"
//
#include "common/bfloat16_rows.h"
//
#include "common/bfloat16_pairs.h"

// c = before + a @ b, c: [rows of a tile, kPanel], where a is the sum of its parts.
struct Tile {
  const char* a;  // [steps][parts][rows of a tile][32] bfloat16
  int64_t step_bytes;
  const BFloat16* b;  // [steps][32][kPanel]
  int64_t steps;
  const float* before;  // rows of a panel; or null for zeros
  float* c;
  int64_t c_stride;
  bool in_order;  // whether the columns of c have to be, and not as instructions left them
};

// Two numbers of a row as the instruction takes them, for all columns.
ONNXFUSE_INLINE __m512bh two(const char* p) {
  int32_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(bits));
}

template <int kRows, int kParts>
void multiply_tile(const Tile& tile) {
  constexpr int kUnroll = 4;  // of the loop over pairs
  __m512 sums[kParts * kRows][2] = {};
  if (tile.before != nullptr) {
    ONNXFUSE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      sums[r][0] = _mm512_loadu_ps(tile.before + r * kPanel);
      sums[r][1] = _mm512_loadu_ps(tile.before + r * kPanel + 16);
    }
  }
  const char* a = tile.a;
  const BFloat16* b = tile.b;
  for (int64_t step = 0; step < tile.steps; ++step, a += tile.step_bytes) {
    for (int first = 0; first < kPairs; first += kUnroll, b += 2 * kUnroll * kPanel) {
      const WeightsAhead ahead(b, true);
      ONNXFUSE_UNROLL
      for (int i = 0; i < kUnroll; ++i) {
        ahead.fetch(2 * i);
        ahead.fetch(2 * i + 1);
        const Pairs pairs =
            pairs_of(_mm512_loadu_si512(b + 2 * i * kPanel), _mm512_loadu_si512(b + (2 * i + 1) * kPanel));
        const auto left = reinterpret_cast<__m512bh>(pairs.left), right = reinterpret_cast<__m512bh>(pairs.right);
        ONNXFUSE_UNROLL
        for (int r = 0; r < kParts * kRows; ++r) {
          const __m512bh x = two(a + r * 64 + (first + i) * 4);
          sums[r][0] = _mm512_dpbf16_ps(sums[r][0], x, left);
          sums[r][1] = _mm512_dpbf16_ps(sums[r][1], x, right);
        }
      }
    }
  }
  ONNXFUSE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    for (int row = r + kRows; row < kParts * kRows; row += kRows) {
      sums[r][0] = _mm512_add_ps(sums[r][0], sums[row][0]);
      sums[r][1] = _mm512_add_ps(sums[r][1], sums[row][1]);
    }
    if (tile.in_order) put_in_order(sums[r][0], sums[r][1]);
    _mm512_storeu_ps(tile.c + r * tile.c_stride, sums[r][0]);
    _mm512_storeu_ps(tile.c + r * tile.c_stride + 16, sums[r][1]);
  }
}

// The slice as if it were packed and of whole steps, filled up with zeros.
const BFloat16* copy_whole_steps(const Slice<BFloat16>& slice, BFloat16* to) {
  static_assert(kScratchBytes == kSliceDepth * kPanel * sizeof(BFloat16));
  const __mmask32 columns = slice.columns() >= kPanel ? ~0u : (1u << slice.columns()) - 1;
  const BFloat16* from = slice.data();
  for (int64_t k = 0; k < steps_of(slice.depth) * kStep; ++k, from += slice.stride())
    _mm512_store_si512(to + k * kPanel, _mm512_maskz_loadu_epi16(k < slice.depth ? columns : 0, from));
  return to;
}

template <int kParts, int... kIndices>
constexpr auto by_rows(std::integer_sequence<int, kIndices...>) {
  return std::array{&multiply_tile<kIndices + 1, kParts>...};
}

}  // namespace

void write_tiles(const TileLayout& layout, const TileSource& from, void* tiles) {
  write_rows_of_any(layout, from, static_cast<char*>(tiles));
}

void multiply(const TileLayout& layout, const void* a, const Weight* weights, int64_t count, const GemmBlock& block,
              void* scratch) {
  static constexpr auto kOfOnePart = by_rows<1>(std::make_integer_sequence<int, kTileRows>());
  static constexpr auto kOfTwoParts = by_rows<2>(std::make_integer_sequence<int, kFewRows>());
  const auto* const multiply_rows = layout.parts == 1 ? kOfOnePart.data() : kOfTwoParts.data();
  const int64_t step_bytes = layout.parts * layout.tile_rows * kStep * 2;
  const int64_t tile_bytes = steps_of(layout.depth) * step_bytes;
  const int64_t group = kActivationBytes / (block.tiles * step_bytes * (kSliceDepth / kStep));
  const auto multiply_slice = [&](const Slice<BFloat16>& slice, const Slice<BFloat16>&) {
    Tile tile;
    tile.step_bytes = step_bytes;
    tile.b = slice.data();
    tile.steps = steps_of(slice.depth);
    if (!slice.weight->packed || slice.depth % kStep != 0)
      tile.b = copy_whole_steps(slice, static_cast<BFloat16*>(scratch));
    const bool leaves = block.out != nullptr && slice.is_last();
    tile.c_stride = leaves ? slice.weight->columns : kPanel;
    tile.in_order = slice.is_last();
    for (int64_t j = block.first_tile; j < block.first_tile + block.tiles; ++j) {
      const int64_t row = layout.begin(j);
      float* const sums = slice.sums + (row - block.first_row) * kPanel;
      tile.a = static_cast<const char*>(a) + j * tile_bytes + slice.first / kStep * step_bytes;
      tile.before = slice.first > 0 ? sums : nullptr;
      tile.c = leaves ? block.out + row * slice.weight->columns + slice.panel * kPanel : sums;
      multiply_rows[layout.begin(j + 1) - row - 1](tile);
    }
  };
  for_each_slice<BFloat16>(block, weights, count, kSliceDepth, group, multiply_slice);
}

}  // namespace onnxfuse::bf16

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

namespace onnxfuse::bf16 {

bool wanted(int64_t, DType) { return false; }
void cut(TileLayout&, DType) {}
void write_tiles(const TileLayout&, const TileSource&, void*) {}
void multiply(const TileLayout&, const void*, const Weight*, int64_t, const GemmBlock&, void*) {}

}  // namespace onnxfuse::bf16

#endif
