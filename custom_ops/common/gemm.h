// Matrix products A @ W of activations by weights, accumulated in float32.
//
// A: [M, K] float32|float16|bfloat16; it is first cut into tiles (TileLayout) in the form the kernel multiplies.
// W: [K, N] float32|float16|bfloat16|int8 in one of two layouts:
//   plain   [K, N], as ONNX's MatMul has it
//   packed  [N/32, K, 32], N a multiple of 32: panel p, row k, lane j holds W[k, 32 p + j]
// The packed one is what the kernels read, in place and in order; panels of a plain one are copied piece by piece.
// int8 is packed only, four rows at a time, and has scales, bfloat16; K is a multiple of 32:
//   [N/32, K/4, 32, 4], scale [N/32, K/32, 32]: W[4 r + i, 32 p + j] = number (p, r, j, i) * scale (p, r / 8, j)
// That product has at most 15 bits.
//
// Work is split into blocks of rows by panels of 32 columns. A block is owned by one thread, which multiplies over the
// whole of K into a buffer that stays in its second-level cache and then hands the sums to an epilogue (activation,
// bias, rounding); sums that are a float32 result already go there in the course of the product. Several weights that
// share A (gate and up; query, key and value) are multiplied together.
// Memory traffic: W is read once for every few hundred rows.
//
// Numerics: a product of float32 and its addition to the sum are rounded once (FMA); float16 and bfloat16 are widened.
// AMX multiplies bfloat16: there a number that is none is taken as the sum of two or, where a float32 activation meets
// a float32 weight, of three of them, and the products of the lowest parts are left out. Of weights of 16 bits or fewer
// that is an error of at most 2^-15 of a product, typically a quarter of it: what a float16 result is rounded by is
// 2^-11. Of float32 weights it is 2^-22, typically 2^-25, where rounding a float32 result costs up to 2^-24. AMX takes
// subnormal numbers for zeros, and what is smaller than 2^-110 loses low parts; an infinite number may give NaN instead
// of infinity. VDPBF16PS, on processors that lack AMX, takes activations beside bfloat16 weights as such sums, too, but
// those of eight rows and more rounded to bfloat16, by at most 2^-8 of themselves, as the weights of a float32 model
// were; a second part would cost all that the instruction gains. int8 weights are multiplied as integers, few rows on
// AMX and any number of them on VNNI, see gemm_int8.cc: an activation is then within 2^-16 of the largest of the 32
// that share a scale, and one that is not finite gives NaN. Otherwise such weights are multiplied by their scales
// first; for AMX the product is rounded to bfloat16, by at most 2^-8 of itself, where it is within 2^-8 of the largest
// of the 32 from the number that it stands for.
#pragma once

#include <algorithm>
#include <type_traits>

#include "common/context.h"
#include "common/shape_inference.h"

namespace onnxfuse {

inline constexpr int64_t kPanel = 32;       // columns of a panel
inline constexpr int64_t kScaledRows = 32;  // rows of a panel that share their scales

struct Weight {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t depth = 0, columns = 0;  // K, N
  bool packed = false;
  const BFloat16* scales = nullptr;  // of int8

  int64_t panels() const { return (columns + kPanel - 1) / kPanel; }
};

// Reads the layout of a weight off its rank; fails if it is neither, if K is not `depth`, or if its dtype is not that
// of the activations: but float32 ones may be multiplied by bfloat16 weights, all by int8 weights, which have scales.
Weight weight_of(const AnyTensor& tensor, const AnyTensor& scale, const char* name, int64_t depth, DType activations);

// N of a weight of which the type is known.
Dim columns_of(const TensorType& weight);

// How A: [rows, depth] lies in memory for the kernel that will multiply it. Rows are grouped into tiles.
struct TileLayout {
  int64_t rows, depth;
  int64_t tiles = 0, tile_rows = 0;  // tile_rows: in the highest tile

  // kFloat: [slices of K][tiles][rows of a tile][row_stride] float32, the rows spread evenly over the tiles.
  // kAmx: [tiles][K/32][parts][rows of a tile][32] bfloat16; tiles of 32 rows, or one of all rows where they are few.
  // kBf16: the same with lower tiles.
  // kInt8: [tiles][K/32][rows of a tile], integers with a scale, see gemm_int8.cc.
  enum class Form { kFloat, kAmx, kBf16, kInt8 } form = Form::kFloat;
  int64_t parts = 0, slice_depth = 0, row_stride = 0;

  // For activations that have the values of dtype `a`, multiplied by weights of dtype `weight`.
  TileLayout(int64_t rows, int64_t depth, DType a, DType weight);

  size_t bytes() const;

  // The first row of a tile, and the tile of a row. All tiles but the last are of one height, unless rows are spread.
  int64_t begin(int64_t tile) const { return spread() ? rows * tile / tiles : std::min(rows, tile * tile_rows); }
  int64_t tile_of(int64_t row) const { return spread() ? ((row + 1) * tiles - 1) / rows : row / tile_rows; }
  bool spread() const { return form == Form::kFloat; }

  // Whether the sums of a block may go elsewhere than to its buffer.
  bool writes_out() const { return depth > 0 && form != Form::kInt8 && (form != Form::kAmx || tiles > 1); }
};

// Part of A where it comes from: row `row` of panel `panel` (columns 32 panel ...) starts at
// data + (row - first_row) * row_stride + (panel - first_panel) * panel_stride.
struct TileSource {
  const void* data;
  DType dtype;
  int64_t first_row, rows, first_panel, panels, row_stride, panel_stride;
};

// Writes a part of A to its place in the tiles.
void write_tiles(const TileLayout& layout, const TileSource& from, void* tiles);

// The sums of one block: a row of a panel is kPanel consecutive floats (those beyond N are zeros).
struct GemmBlock {
  int64_t first_tile, tiles, first_row, rows, first_panel, panels;
  float* sums;  // [weights][panels][row_capacity][kPanel]
  int64_t row_capacity;
  float* out = nullptr;  // [M, N] of one weight, N a multiple of kPanel: where the sums go instead, if not null

  float* row(int64_t weight, int64_t panel, int64_t row) const {
    return sums + ((weight * panels + panel - first_panel) * row_capacity + row - first_row) * kPanel;
  }

  // The block of product `weight` as a part of the next A.
  TileSource source(int64_t weight) const {
    return {row(weight, first_panel, first_row),
            DType::kFloat32,
            first_row,
            rows,
            first_panel,
            panels,
            kPanel,
            row_capacity * kPanel};
  }
};

// How the product of a tiled A by `panels` panels is cut into blocks.
class GemmPlan {
 public:
  GemmPlan(const TileLayout& a, int64_t panels);

  int64_t blocks() const { return row_blocks_ * panel_blocks_; }

  // Consecutive blocks share panels, so that weights come from memory once and from a cache afterwards.
  GemmBlock block(int64_t index) const;

 private:
  const TileLayout& a_;
  int64_t panels_, row_blocks_, panel_blocks_;
};

// Computes the sums of `block` (its buffer is the calling thread's own and lasts until the thread's next call).
// The weights have the dtype that the layout was made for, equal N and K = layout.depth.
void multiply(const TileLayout& layout, const void* a, const Weight* weights, int64_t count, GemmBlock& block);

// Cuts A: [layout.rows, layout.depth], row-major, into tiles, in parallel.
template <typename T>
void cut_into_tiles(const Context& context, const T* a, const TileLayout& layout, void* tiles) {
  const int64_t panels = (layout.depth + kPanel - 1) / kPanel;
  context.parallel_for(layout.rows, 0.2 * static_cast<double>(layout.depth), [&](int64_t begin, int64_t end) {
    write_tiles(layout, {a + begin * layout.depth, kDTypeOf<T>, begin, end - begin, 0, panels, layout.depth, kPanel},
                tiles);
  });
}

// At 64 GFLOP/s a thread, or 16 GB/s of weights.
inline double product_nanoseconds(const TileLayout& layout, const Weight& weight) {
  const double values = static_cast<double>(layout.depth) * static_cast<double>(weight.columns);
  return values * static_cast<double>(layout.rows) / 32 + values / 4;
}

// Calls epilogue(block), in parallel, for blocks that cover A @ W for each of `count` weights of equal N and dtype, the
// sums of all of them in one block. The epilogue must not throw.
template <class Epilogue>
void for_each_block(const Context& context, const TileLayout& layout, const void* a, const Weight* weights,
                    int64_t count, const Epilogue& epilogue) {
  const GemmPlan plan(layout, weights->panels());
  if (plan.blocks() == 0) return;
  const double nanoseconds = product_nanoseconds(layout, *weights) * static_cast<double>(count);
  context.parallel_for(plan.blocks(), nanoseconds / static_cast<double>(plan.blocks()),
                       [&](int64_t begin, int64_t end) {
                         for (int64_t i = begin; i < end; ++i) {
                           GemmBlock block = plan.block(i);
                           multiply(layout, a, weights, count, block);
                           epilogue(block);
                         }
                       });
}

// y = T(A @ W + bias), y: [M, N]; bias: [N] or null.
template <typename T>
struct Projection {
  Weight weight;
  const T* bias;
  T* y;

  // Where the kernel writes sums that are y as they are, if they come in whole panels; else null.
  float* out(const TileLayout& layout) const {
    if constexpr (std::is_same_v<T, float>) {
      if (bias == nullptr && layout.writes_out() && weight.columns % kPanel == 0) return y;
    }
    return nullptr;
  }
};

// Computes `count` projections of any N and equal dtype, in parallel; round(block, bias, y, N) adds the bias to the
// sums of a block and rounds them to its part of y.
template <typename T, class Round>
void multiply_each(const Context& context, const TileLayout& layout, const void* a, const Projection<T>* projections,
                   int64_t count, const Round& round) {
  int64_t blocks = 0;
  double nanoseconds = 0;
  for (int64_t i = 0; i < count; ++i) {
    blocks += GemmPlan(layout, projections[i].weight.panels()).blocks();
    nanoseconds += product_nanoseconds(layout, projections[i].weight);
  }
  if (blocks == 0) return;
  context.parallel_for(blocks, nanoseconds / static_cast<double>(blocks), [&](int64_t begin, int64_t end) {
    int64_t first = 0;  // block of projection i
    for (int64_t i = 0; i < count && first < end; ++i) {
      const Projection<T>& projection = projections[i];
      const GemmPlan plan(layout, projection.weight.panels());
      for (int64_t j = std::max(begin, first); j < std::min(end, first + plan.blocks()); ++j) {
        GemmBlock block = plan.block(j - first);
        block.out = projection.out(layout);
        multiply(layout, a, &projection.weight, 1, block);
        if (block.out == nullptr) round(block, projection.bias, projection.y, projection.weight.columns);
      }
      first += plan.blocks();
    }
  });
}

}  // namespace onnxfuse
