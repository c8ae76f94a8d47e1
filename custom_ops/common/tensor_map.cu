#include "common/driver.h"
#include "common/hopper.cuh"
#include "common/tensor_map.h"

namespace onnxfuse::cuda {

namespace {

// Sizes, strides and a tile from the columns on.
template <int kRank>
CUtensorMap map_of(const void* data, const int64_t (&sizes)[kRank], const int64_t (&strides)[kRank - 1],
                   const int64_t (&tile)[kRank]) {
  CUtensorMap map{};
  constexpr int64_t kBytes = 2;
  cuuint64_t in_sizes[kRank], in_bytes[kRank - 1];
  cuuint32_t in_tile[kRank], steps[kRank];
  int64_t count = 1;
  for (int i = 0; i < kRank; ++i) {
    count *= sizes[i];
    in_sizes[i] = static_cast<cuuint64_t>(sizes[i]);
    in_tile[i] = static_cast<cuuint32_t>(tile[i]);
    steps[i] = 1;
    if (i > 0) in_bytes[i - 1] = static_cast<cuuint64_t>(strides[i - 1] * kBytes);
  }
  if (data == nullptr || count == 0) return map;
  static const auto encode = driver_function<decltype(cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, kRank, const_cast<void*>(data), in_sizes,
                                 in_bytes, in_tile, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(result == CUDA_SUCCESS, "CUDA: a tensor map: error ", static_cast<int>(result));
  return map;
}

}  // namespace

CUtensorMap tensor_map(const void* data, int64_t batch, int64_t heads, int64_t rows, int64_t columns,
                       int64_t batch_stride, int64_t head_stride, int64_t row_stride, int rows_of_tile) {
  return map_of<4>(data, {columns, rows, heads, batch}, {row_stride, head_stride, batch_stride},
                   {kSlab, rows_of_tile, 1, 1});
}

CUtensorMap grouped_tensor_map(const void* data, int64_t batch, int64_t heads, int64_t groups, int64_t members,
                               int64_t columns, int64_t batch_stride, int64_t head_stride, int64_t group_stride,
                               int64_t member_stride, int rows_of_tile) {
  return map_of<5>(data, {columns, members, groups, heads, batch},
                   {member_stride, group_stride, head_stride, batch_stride},
                   {kSlab, members, rows_of_tile / members, 1, 1});
}

}  // namespace onnxfuse::cuda
