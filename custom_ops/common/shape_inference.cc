#include "common/shape_inference.h"

#include <atomic>
#include <memory>

namespace onnxfuse {
namespace {

struct ReleaseInfo {
  void operator()(OrtTensorTypeAndShapeInfo* info) const { ort::api.ReleaseTensorTypeAndShapeInfo(info); }
};
using Info = std::unique_ptr<OrtTensorTypeAndShapeInfo, ReleaseInfo>;

}  // namespace

Dim Dim::unknown() {
  static std::atomic<int64_t> count{0};
  return {-1, "onnxfuse_unknown_" + std::to_string(count++)};
}

ShapeInference::ShapeInference(OrtShapeInferContext* context, size_t required_outputs)
    : context_(context), required_outputs_(required_outputs) {
  check(ort::api.ShapeInferContext_GetInputCount(context_, &input_count_));
}

bool ShapeInference::has_input(size_t index) const { return index < input_count_; }

std::optional<TensorType> ShapeInference::input(size_t index) const {
  if (!has_input(index)) return std::nullopt;
  OrtTensorTypeAndShapeInfo* info = nullptr;  // belongs to the runtime
  if (!take_error(ort::api.ShapeInferContext_GetInputTypeShape(context_, index, &info)).empty()) return std::nullopt;
  size_t rank = 0;
  check(ort::api.GetDimensionsCount(info, &rank));
  if (rank == 0) return std::nullopt;  // an unknown rank is reported as 0, and no operator takes a scalar
  std::vector<int64_t> sizes(rank);
  std::vector<const char*> symbols(rank);
  check(ort::api.GetDimensions(info, sizes.data(), rank));
  check(ort::api.GetSymbolicDimensions(info, symbols.data(), rank));
  Dims dims(rank);
  for (size_t i = 0; i < rank; ++i) {
    if (sizes[i] >= 0) {
      dims[i].size = sizes[i];
    } else if (symbols[i] != nullptr && *symbols[i] != '\0') {
      dims[i].symbol = symbols[i];
    } else {
      dims[i] = Dim::unknown();
    }
  }
  int dtype = 0;
  check(ort::api.GetTensorElementType(info, &dtype));
  return TensorType{static_cast<DType>(dtype), dims};
}

int64_t ShapeInference::integer(const char* name, int64_t otherwise) const {
  const OrtOpAttr* attribute = nullptr;
  if (!take_error(ort::api.ShapeInferContext_GetAttribute(context_, name, &attribute)).empty()) return otherwise;
  int64_t value = 0;
  size_t size = 0;
  check(ort::api.ReadOpAttr(attribute, ort::kAttributeInt, &value, sizeof(value), &size));
  return value;
}

void ShapeInference::output(size_t index, DType dtype, const Dims& dims) const {
  const bool is_optional = index >= required_outputs_;
  if (is_optional && ort::api.version < ort::kApiVersionCheckingOutputs) return;
  OrtTensorTypeAndShapeInfo* raw = nullptr;
  check(ort::api.CreateTensorTypeAndShapeInfo(&raw));
  const Info info(raw);
  std::vector<int64_t> sizes;
  std::vector<const char*> symbols;
  for (const Dim& dim : dims) {
    sizes.push_back(dim.size);
    symbols.push_back(dim.symbol.c_str());
  }
  check(ort::api.SetTensorElementType(info.get(), static_cast<int>(dtype)));
  check(ort::api.SetDimensions(info.get(), sizes.data(), sizes.size()));
  check(ort::api.SetSymbolicDimensions(info.get(), symbols.data(), symbols.size()));
  const std::string error = take_error(ort::api.ShapeInferContext_SetOutputTypeShape(context_, index, info.get()));
  require(is_optional || error.empty(), error);
}

}  // namespace onnxfuse
