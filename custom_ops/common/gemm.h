// Matrix products A @ W of activations by weights, accumulated in float32.
//
// A: [M, K] float32|float16|bfloat16, row-major. W: [K, N] float32|float16|bfloat16 in one of two layouts:
//   plain   [K, N], as ONNX's MatMul has it
//   packed  [N/32, K, 32], N a multiple of 32: panel p, row k, lane j holds W[k, 32 p + j]
// The packed one is what the kernels read, in place and in order; panels of a plain one are copied piece by piece.
//
// Work is split into blocks of rows by panels of 32 columns. A block is owned by one thread, which multiplies over the
// whole of K into scratch that stays in its second-level cache and then hands the sums to an epilogue (activation,
// bias, rounding). Several weights that share A (gate and up; query, key and value) are multiplied together. Memory
// traffic: W is read once for every kBlockRows rows.
#pragma once

#include <algorithm>

#include "common/context.h"

namespace onnxfuse {

inline constexpr int64_t kPanel = 32;  // columns of a panel

struct Weight {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t depth = 0, columns = 0;  // K, N
  bool packed = false;

  int64_t panels() const { return (columns + kPanel - 1) / kPanel; }
};

// Reads the layout of a weight off its rank; fails if it is neither, or if K is not `depth`.
Weight weight_of(const AnyTensor& tensor, const char* name, int64_t depth);

struct Activations {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t rows = 0, depth = 0;  // M, K
};

// The sums of one block: a row of a panel is 32 consecutive floats (those beyond N are zeros).
struct GemmBlock {
  int64_t first_row, rows, first_panel, panels;
  float* sums;  // [weights][panels][rows][32]

  const float* row(int64_t weight, int64_t panel, int64_t row) const {
    return sums + ((weight * panels + panel - first_panel) * rows + row - first_row) * kPanel;
  }
};

// How the product of M rows by `panels` panels is cut into blocks.
class GemmPlan {
 public:
  GemmPlan(int64_t rows, int64_t panels);

  int64_t blocks() const { return row_blocks_ * panel_blocks_; }

  // Consecutive blocks share panels, so that weights come from memory once and from a cache afterwards.
  GemmBlock block(int64_t index) const;

 private:
  int64_t rows_, panels_, row_blocks_, panel_blocks_;
};

// Computes the sums of `block` (its buffer is the calling thread's own and lasts until the thread's next call).
// The weights have equal dtypes, K = a.depth, and the block's panels.
void multiply(const Activations& a, const Weight* weights, int64_t count, GemmBlock& block);

// Calls epilogue(block), in parallel, for blocks that cover A @ W for each of `count` weights of equal N.
// The epilogue must not throw.
template <class Epilogue>
void for_each_block(const Context& context, const Activations& a, const Weight* weights, int64_t count,
                    const Epilogue& epilogue) {
  const GemmPlan plan(a.rows, weights->panels());
  if (plan.blocks() == 0) return;
  // At 64 GFLOP/s a thread, or 16 GB/s of weights.
  const double products = static_cast<double>(a.rows * a.depth * count) * static_cast<double>(weights->columns);
  const double nanoseconds = products / 32 + products / static_cast<double>(a.rows) / 8;
  context.parallel_for(plan.blocks(), nanoseconds / static_cast<double>(plan.blocks()),
                       [&](int64_t begin, int64_t end) {
                         for (int64_t i = begin; i < end; ++i) {
                           GemmBlock block = plan.block(i);
                           multiply(a, weights, count, block);
                           epilogue(block);
                         }
                       });
}

}  // namespace onnxfuse
