#include "common/gemm.h"

#include <new>
#include <type_traits>
#include <utility>

#include "common/gemm_amx.h"
#include "common/gemm_bf16.h"
#include "common/gemm_int8.h"
#include "common/gemm_slices.h"
#include "common/prefetching.h"
#include "common/simd_target.h"

namespace onnxfuse {
namespace {

constexpr int64_t kBlockRows = 256;                // of a block, at most
constexpr int64_t kBlockSums = 2048;               // rows * panels of a block, at most: 256 KB for each weight
constexpr int64_t kWantedBlocks = 16;              // so that threads of uneven speed finish together
constexpr int64_t kActivationFloats = 128 * 1024;  // of A that the second-level cache holds beside the sums
constexpr int64_t kCopyFloats = 16 * 1024;         // of a slice that is converted

}  // namespace
}  // namespace onnxfuse

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

Weight weight_of(const AnyTensor& tensor, const AnyTensor& scale, const char* name, int64_t depth, DType activations) {
  const bool scaled = tensor.dtype == DType::kInt8;
  require(tensor.dtype == activations || scaled || (activations == DType::kFloat32 && tensor.dtype == DType::kBFloat16),
          name, " is ", dtype_name(tensor.dtype), ", expected ", dtype_name(activations),
          activations == DType::kFloat32 ? ", bfloat16" : "", " or int8");
  require(scale.present == scaled, name, " is ", dtype_name(tensor.dtype), scaled ? " without" : " and has",
          " scales, expected int8 with scales or another dtype without");
  const Shape& shape = tensor.shape;
  if (scaled) {
    const int64_t panels = shape.rank() == 4 ? shape[0] : 0;
    require(depth % kScaledRows == 0 && shape == Shape{panels, depth / 4, kPanel, 4}, name, " is int8 and ", shape,
            ", expected [N/32,K/4,32,4], K = ", depth, " a multiple of ", kScaledRows);
    const Shape scales{panels, depth / kScaledRows, kPanel};
    require(scale.shape == scales, "the scale of ", name, " is ", scale.shape, ", expected ", scales);
    return {tensor.data, tensor.dtype, depth, panels * kPanel, true, scale.as<BFloat16>().data};
  }
  const bool packed = shape.rank() == 3;
  const bool fits = packed ? shape[1] == depth && shape[2] == kPanel : shape.rank() == 2 && shape[0] == depth;
  require(fits, name, " is ", shape, ", expected [", depth, ",N] or packed panels [N/32,", depth, ",32]");
  return {tensor.data, tensor.dtype, depth, packed ? shape[0] * kPanel : shape[1], packed};
}

Dim columns_of(const TensorType& weight) {
  if (weight.dims.size() == 2) return weight.dims.back();
  const Dim& panels = weight.dims.front();
  return panels.known() ? Dim{panels.size * kPanel, ""} : Dim::unknown();
}

TileLayout::TileLayout(int64_t rows, int64_t depth, DType a, DType weight) : rows(rows), depth(depth) {
  if (int8::wanted(rows, weight))
    int8::cut(*this);
  else if (amx::wanted(rows, weight))
    amx::cut(*this, a, weight);
  else if (bf16::wanted(rows, weight))
    bf16::cut(*this, a);
  else
    ONNXFUSE_KERNEL(cut)(*this, weight);
}

size_t TileLayout::bytes() const {
  if (form == Form::kInt8) return static_cast<size_t>(int8::bytes(*this));
  const int64_t panels = divide_up(depth, kPanel);
  const int64_t row = parts > 0 ? panels * kPanel * parts * 2 : divide_up(depth, slice_depth) * row_stride * 4;
  return static_cast<size_t>(tiles * tile_rows * row);
}

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
  block.row_capacity = a_.spread() ? block.rows : block.tiles * a_.tile_rows;
  return block;
}

void write_tiles(const TileLayout& layout, const TileSource& from, void* tiles) {
  if (layout.form == TileLayout::Form::kInt8) return int8::write_tiles(layout, from, tiles);
  if (layout.form == TileLayout::Form::kAmx) return amx::write_tiles(layout, from, tiles);
  if (layout.form == TileLayout::Form::kBf16) return bf16::write_tiles(layout, from, tiles);
  float* out = static_cast<float*>(tiles);
  switch (from.dtype) {
    case DType::kFloat16:
      return ONNXFUSE_KERNEL(write_tiles_of<Half>)(layout, from, out);
    case DType::kBFloat16:
      return ONNXFUSE_KERNEL(write_tiles_of<BFloat16>)(layout, from, out);
    default:
      return ONNXFUSE_KERNEL(write_tiles_of<float>)(layout, from, out);
  }
}

void multiply(const TileLayout& layout, const void* a, const Weight* weights, int64_t count, GemmBlock& block) {
  thread_local Buffer sums, scratch;
  const int64_t size = count * block.panels * block.row_capacity * kPanel;
  block.sums = sums.at_least(size);
  if (layout.depth == 0) {
    std::fill_n(block.sums, size, 0.0f);
    return;
  }
  if (layout.form == TileLayout::Form::kInt8) return int8::multiply(layout, a, weights, count, block);
  if (layout.form == TileLayout::Form::kAmx)
    return amx::multiply(layout, a, weights, count, block, scratch.at_least(amx::kScratchBytes / sizeof(float)));
  if (layout.form == TileLayout::Form::kBf16)
    return bf16::multiply(layout, a, weights, count, block, scratch.at_least(bf16::kScratchBytes / sizeof(float)));
  const float* rows = static_cast<const float*>(a);
  float* copy = scratch.at_least(kCopyFloats);
  switch (weights->dtype) {
    case DType::kFloat16:
      return ONNXFUSE_KERNEL(multiply_block<Half>)(layout, rows, weights, count, block, copy);
    case DType::kBFloat16:
      return ONNXFUSE_KERNEL(multiply_block<BFloat16>)(layout, rows, weights, count, block, copy);
    case DType::kInt8:
      return ONNXFUSE_KERNEL(multiply_block<int8_t>)(layout, rows, weights, count, block, copy);
    default:
      return ONNXFUSE_KERNEL(multiply_block<float>)(layout, rows, weights, count, block, copy);
  }
}

}  // namespace onnxfuse
