#include "common/driver.h"
#include "common/hopper.cuh"
#include "common/tensor_map.h"

namespace onnxfuse::cuda {

CUtensorMap tensor_map(const void* data, int64_t batch, int64_t heads, int64_t rows, int64_t columns,
                       int64_t batch_stride, int64_t head_stride, int64_t row_stride, int rows_of_tile) {
  CUtensorMap map{};
  if (data == nullptr || batch * heads * rows * columns == 0) return map;
  static const auto encode = driver_function<decltype(cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  constexpr int kRank = 4, kBytes = 2;
  const auto size = [](int64_t x) { return static_cast<cuuint64_t>(x); };
  const cuuint64_t sizes[kRank] = {size(columns), size(rows), size(heads), size(batch)};
  const cuuint64_t strides[kRank - 1] = {size(row_stride * kBytes), size(head_stride * kBytes),
                                         size(batch_stride * kBytes)};
  const cuuint32_t tile[kRank] = {kSlab, static_cast<cuuint32_t>(rows_of_tile), 1, 1}, steps[kRank] = {1, 1, 1, 1};
  const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, kRank, const_cast<void*>(data), sizes, strides,
                                 tile, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(result == CUDA_SUCCESS, "CUDA: a tensor map: error ", static_cast<int>(result));
  return map;
}

}  // namespace onnxfuse::cuda
