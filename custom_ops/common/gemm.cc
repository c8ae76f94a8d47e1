#include "common/gemm.h"

#include <new>
#include <type_traits>
#include <utility>

#include "common/simd_target.h"

namespace onnxfuse {
namespace {

constexpr int64_t kBlockRows = 240;                // of a block, at most
constexpr int64_t kBlockSums = 8 * kBlockRows;     // rows * panels of a block, at most: 240 KB for each weight
constexpr int64_t kWantedBlocks = 16;              // so that threads of uneven speed finish together
constexpr int64_t kActivationFloats = 128 * 1024;  // of A that the second-level cache holds beside the sums
constexpr int64_t kCopyFloats = 8 * 1024;          // of a slice that is converted

}  // namespace
}  // namespace onnxfuse

#define ONNXFUSE_UNROLL _Pragma("GCC unroll 32")
#define ONNXFUSE_KERNELS "common/gemm_kernel.h"
#include "common/each_target.h"

namespace onnxfuse {
namespace {

// Memory of one thread: it stays in that core's cache from block to block.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  ~Buffer() { operator delete[](data_, kAlignment); }

  float* at_least(int64_t floats) {
    if (floats > size_) {
      operator delete[](data_, kAlignment);
      data_ = nullptr;
      size_ = 0;
      data_ = static_cast<float*>(operator new[](sizeof(float) * static_cast<size_t>(floats), kAlignment));
      size_ = floats;
    }
    return data_;
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  float* data_ = nullptr;
  int64_t size_ = 0;
};

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

Weight weight_of(const AnyTensor& tensor, const char* name, int64_t depth, DType activations) {
  require(tensor.dtype == activations || (activations == DType::kFloat32 && tensor.dtype == DType::kBFloat16), name,
          " is ", dtype_name(tensor.dtype), ", expected ", dtype_name(activations),
          activations == DType::kFloat32 ? " or bfloat16" : "");
  const Shape& shape = tensor.shape;
  const bool packed = shape.rank() == 3;
  const bool fits = packed ? shape[1] == depth && shape[2] == kPanel : shape.rank() == 2 && shape[0] == depth;
  require(fits, name, " is ", shape, ", expected [", depth, ",N] or packed panels [N/32,", depth, ",32]");
  return {tensor.data, tensor.dtype, depth, packed ? shape[0] * kPanel : shape[1], packed};
}

Dim columns_of(const TensorType& weight) {
  if (weight.dims.size() != 3) return weight.dims.back();
  const Dim& panels = weight.dims.front();
  return panels.known() ? Dim{panels.size * kPanel, ""} : Dim::unknown();
}

TileLayout::TileLayout(int64_t rows, int64_t depth) : rows(rows), depth(depth) { ONNXFUSE_KERNEL(cut)(*this); }

GemmPlan::GemmPlan(const TileLayout& a, int64_t panels)
    : a_(a), panels_(panels), row_blocks_(divide_up(a.rows, kBlockRows)), panel_blocks_(0) {
  if (a.rows == 0 || panels == 0) return;
  const int64_t most = std::max<int64_t>(1, kBlockSums / divide_up(a.rows, row_blocks_));
  panel_blocks_ = std::min(panels, std::max(divide_up(panels, most), divide_up(kWantedBlocks, row_blocks_)));
}

GemmBlock GemmPlan::block(int64_t index) const {
  const int64_t i = index % row_blocks_, j = index / row_blocks_;
  GemmBlock block;
  block.first_tile = a_.tiles * i / row_blocks_;
  block.tiles = a_.tiles * (i + 1) / row_blocks_ - block.first_tile;
  block.first_row = a_.begin(block.first_tile);
  block.rows = a_.begin(block.first_tile + block.tiles) - block.first_row;
  block.first_panel = panels_ * j / panel_blocks_;
  block.panels = panels_ * (j + 1) / panel_blocks_ - block.first_panel;
  block.sums = nullptr;
  return block;
}

void copy_row(const void* a, DType dtype, const TileLayout& layout, int64_t row, float* tiles) {
  switch (dtype) {
    case DType::kFloat32:
      return ONNXFUSE_KERNEL(copy_row_of<float>)(a, layout, row, tiles);
    case DType::kFloat16:
      return ONNXFUSE_KERNEL(copy_row_of<Half>)(a, layout, row, tiles);
    case DType::kBFloat16:
      return ONNXFUSE_KERNEL(copy_row_of<BFloat16>)(a, layout, row, tiles);
    default:
      fail("no matrix product of ", dtype_name(dtype));
  }
}

void multiply(const TileLayout& layout, const float* a, const Weight* weights, int64_t count, GemmBlock& block) {
  thread_local Buffer sums, copy;
  block.sums = sums.at_least(count * block.panels * block.rows * kPanel);
  float* slice = copy.at_least(kCopyFloats);
  switch (weights->dtype) {
    case DType::kFloat32:
      return ONNXFUSE_KERNEL(multiply_block<float>)(layout, a, weights, count, block, slice);
    case DType::kFloat16:
      return ONNXFUSE_KERNEL(multiply_block<Half>)(layout, a, weights, count, block, slice);
    case DType::kBFloat16:
      return ONNXFUSE_KERNEL(multiply_block<BFloat16>)(layout, a, weights, count, block, slice);
    default:
      fail("no matrix product by ", dtype_name(weights->dtype));
  }
}

}  // namespace onnxfuse
