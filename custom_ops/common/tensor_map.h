// Tensor maps: how the copy engine of compute capability 9.0 finds tiles of a tensor in memory.
#pragma once

#include <cuda.h>

#include "common/cuda.h"

namespace onnxfuse::cuda {

// The map of rows of 16-bit numbers, [batch, head, row, column], for tiles of up to 256 rows and 64 columns, laid out
// in shared memory as hopper.cuh says; what lies outside of the tensor is read as zeros. Strides are in elements;
// addresses and strides are multiples of 16 bytes. Null `data` or a size of 0 gives a map that must not be used.
CUtensorMap tensor_map(const void* data, int64_t batch, int64_t heads, int64_t rows, int64_t columns,
                       int64_t batch_stride, int64_t head_stride, int64_t row_stride, int rows_of_tile);

// The same of rows in groups, [batch, head, group, member, column], in tiles of up to 256 rows that are whole groups.
CUtensorMap grouped_tensor_map(const void* data, int64_t batch, int64_t heads, int64_t groups, int64_t members,
                               int64_t columns, int64_t batch_stride, int64_t head_stride, int64_t group_stride,
                               int64_t member_stride, int rows_of_tile);

}  // namespace onnxfuse::cuda
