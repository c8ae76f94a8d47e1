// What a node of Embedding says, checked: common to the kernels of all devices.
#pragma once

#include <algorithm>

#include "common/registry.h"

namespace onnxfuse {

template <typename T, typename Index>
class EmbeddingNode {
 public:
  static constexpr Port kInputs[] = {required<Index>("ids"), required<T>("table")};
  static constexpr Port kOutputs[] = {required<T>("y")};

  static void infer(const ShapeInference& shapes) {
    const auto ids = shapes.input(0), table = shapes.input(1);
    if (!ids || !table || table->dims.size() != 2) return;
    Dims dims = ids->dims;
    dims.push_back(table->dims[1]);
    shapes.output(0, table->dtype, dims);
  }

  explicit EmbeddingNode(const NodeInfo&) {}

 protected:
  struct Arguments {
    const Index* ids;
    const T* table;
    T* y;
    int64_t count, rows, width;  // ids; of the table
  };

  Arguments arguments(const Context& context) const {
    const auto ids = context.input<Index>(0);
    const auto table = context.input<T>(1);
    require(table.shape.rank() == 2, "table is ", table.shape, ", expected [rows, features]");
    int64_t dims[kMaxRank + 1];
    *std::copy_n(ids.shape.data(), ids.shape.rank(), dims) = table.shape[1];
    const auto y = context.output<T>(0, Shape(dims, static_cast<size_t>(ids.shape.rank()) + 1));
    return {ids.data, table.data, y.data, ids.shape.count(), table.shape[0], table.shape[1]};
  }
};

}  // namespace onnxfuse
