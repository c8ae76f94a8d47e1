// Matrix products A @ W of activations by weights, accumulated in float32.
//
// A: [M, K] float32|float16|bfloat16, row-major; it is first cut into tiles (TileLayout) of float32.
// W: [K, N] float32|float16|bfloat16 in one of two layouts:
//   plain   [K, N], as ONNX's MatMul has it
//   packed  [N/32, K, 32], N a multiple of 32: panel p, row k, lane j holds W[k, 32 p + j]
// The packed one is what the kernels read, in place and in order; panels of a plain one are copied piece by piece.
//
// Work is split into blocks of rows by panels of 32 columns. A block is owned by one thread, which multiplies over the
// whole of K into a buffer that stays in its second-level cache and then hands the sums to an epilogue (activation,
// bias, rounding). Several weights that share A (gate and up; query, key and value) are multiplied together.
// Memory traffic: W is read once for every 240 rows.
#pragma once

#include <algorithm>

#include "common/context.h"
#include "common/shape_inference.h"

namespace onnxfuse {

inline constexpr int64_t kPanel = 32;  // columns of a panel

struct Weight {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t depth = 0, columns = 0;  // K, N
  bool packed = false;

  int64_t panels() const { return (columns + kPanel - 1) / kPanel; }
};

// Reads the layout of a weight off its rank; fails if it is neither, if K is not `depth`, or if its dtype is not that of
// the activations: but float32 ones may be multiplied by bfloat16 weights.
Weight weight_of(const AnyTensor& tensor, const char* name, int64_t depth, DType activations);

// N of a weight of which the type is known.
Dim columns_of(const TensorType& weight);

// How A: [M, K] lies in memory for the kernels: [slices of K][tiles of rows][rows of a tile][row_stride], float32.
// The rows are spread evenly over the tiles. A slice is a multiple of kPanel, so the columns of a panel lie together.
struct TileLayout {
  int64_t rows, depth;  // M, K
  int64_t tiles, tile_rows, slice_depth, row_stride;

  // The layout that the kernels of this machine want.
  TileLayout(int64_t rows, int64_t depth);

  int64_t begin(int64_t tile) const { return rows * tile / tiles; }
  int64_t tile_of(int64_t row) const { return ((row + 1) * tiles - 1) / rows; }
  int64_t tile_floats() const { return tile_rows * row_stride; }
  int64_t slice_floats() const { return tiles * tile_floats(); }
  int64_t slices() const { return (depth + slice_depth - 1) / slice_depth; }
  int64_t floats() const { return slices() * slice_floats(); }

  // Where row `row` of the first slice starts, and how far from there column k is.
  int64_t row_offset(int64_t row) const {
    const int64_t tile = tile_of(row);
    return tile * tile_floats() + (row - begin(tile)) * row_stride;
  }
  int64_t column_offset(int64_t k) const { return k / slice_depth * slice_floats() + k % slice_depth; }
};

// The sums of one block: a row of a panel is kPanel consecutive floats (those beyond N are zeros).
struct GemmBlock {
  int64_t first_tile, tiles, first_row, rows, first_panel, panels;
  float* sums;  // [weights][panels][rows][kPanel]

  const float* row(int64_t weight, int64_t panel, int64_t row) const {
    return sums + ((weight * panels + panel - first_panel) * rows + row - first_row) * kPanel;
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

// Copies row `row` of A, `layout.depth` values, to its place in the tiles.
void copy_row(const void* a, DType dtype, const TileLayout& layout, int64_t row, float* tiles);

// Computes the sums of `block` (its buffer is the calling thread's own and lasts until the thread's next call).
// The weights have equal dtypes, equal N and K = layout.depth.
void multiply(const TileLayout& layout, const float* a, const Weight* weights, int64_t count, GemmBlock& block);

// Cuts A: [layout.rows, layout.depth], row-major, into tiles, in parallel.
template <typename T>
void copy_rows(const Context& context, const T* a, const TileLayout& layout, float* tiles) {
  context.parallel_for(layout.rows, 0.2 * static_cast<double>(layout.depth), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) copy_row(a + row * layout.depth, kDTypeOf<T>, layout, row, tiles);
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
void for_each_block(const Context& context, const TileLayout& layout, const float* a, const Weight* weights,
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

// Calls epilogue(i, block), in parallel, for blocks that cover A @ W of weight i, for each of `count` weights of any N.
// The epilogue must not throw.
template <class Epilogue>
void for_each_block_of_each(const Context& context, const TileLayout& layout, const float* a, const Weight* weights,
                            int64_t count, const Epilogue& epilogue) {
  int64_t blocks = 0;
  double nanoseconds = 0;
  for (int64_t i = 0; i < count; ++i) {
    blocks += GemmPlan(layout, weights[i].panels()).blocks();
    nanoseconds += product_nanoseconds(layout, weights[i]);
  }
  if (blocks == 0) return;
  context.parallel_for(blocks, nanoseconds / static_cast<double>(blocks), [&](int64_t begin, int64_t end) {
    int64_t first = 0;  // block of weight i
    for (int64_t i = 0; i < count && first < end; ++i) {
      const GemmPlan plan(layout, weights[i].panels());
      for (int64_t j = std::max(begin, first); j < std::min(end, first + plan.blocks()); ++j) {
        GemmBlock block = plan.block(j - first);
        multiply(layout, a, weights + i, 1, block);
        epilogue(i, block);
      }
      first += plan.blocks();
    }
  });
}

}  // namespace onnxfuse
