// Shape inference of one node when the model is loaded.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "common/error.h"

namespace onnxfuse {

// A dimension: its size, or -1 and a symbol. Equal symbols stand for equal sizes.
struct Dim {
  int64_t size = -1;
  std::string symbol;

  // A dimension that nothing is known of; its symbol is like no other.
  static Dim unknown();
  bool known() const { return size >= 0; }
};

using Dims = std::vector<Dim>;

// What is known of a tensor when the model is loaded.
struct TensorType {
  DType dtype;
  Dims dims;
};

class ShapeInference {
 public:
  ShapeInference(OrtShapeInferContext* context, size_t required_outputs);

  // Whether the node has input `index`.
  bool has_input(size_t index) const;

  // The type of an input; nothing if it is absent or its rank is unknown.
  std::optional<TensorType> input(size_t index) const;

  int64_t integer(const char* name, int64_t otherwise) const;

  // Sets the type of output `index`. An optional output that the node lacks is skipped, and so is every optional one
  // where the runtime cannot say; it then takes the shape from the model's value_info.
  void output(size_t index, DType dtype, const Dims& dims) const;

 private:
  OrtShapeInferContext* context_;
  size_t required_outputs_;
  size_t input_count_ = 0;
};

}  // namespace onnxfuse
