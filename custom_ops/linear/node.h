// What a node of Linear says, checked: common to the kernels of all devices.
#pragma once

#include <cmath>

#include "common/gemm.h"
#include "common/registry.h"
#include "linear/linear.h"

namespace onnxfuse {

template <typename T>
class LinearNode {
 public:
  static constexpr Port kInputs[] = {required<T>("x"),        optional<T>("skip"),      optional_any("norm_weight"),
                                     any("weight_0"),         optional<T>("bias_0"),    optional_any("weight_1"),
                                     optional<T>("bias_1"),   optional_any("weight_2"), optional<T>("bias_2"),
                                     optional_any("scale_0"), optional_any("scale_1"),  optional_any("scale_2")};
  static constexpr Port kOutputs[] = {required<T>("y_0"), optional<T>("y_1"), optional<T>("y_2"), optional<T>("sum")};

  static void infer(const ShapeInference& shapes) {
    const auto x = shapes.input(kX);
    if (!x) return;
    for (int i = 0; i < kMostProducts; ++i) {
      const auto weight = shapes.input(weight_index(i));
      if (!weight) continue;
      auto dims = x->dims;
      dims.back() = columns_of(*weight);
      shapes.output(i, x->dtype, dims);
    }
    if (shapes.input(kSkip)) shapes.output(kSum, x->dtype, x->dims);
  }

  explicit LinearNode(const NodeInfo& node) : epsilon_(node.real("epsilon", NAN)) {}

 protected:
  using Product = Projection<T>;
  enum Input { kX, kSkip, kNormWeight, kWeight };

  static constexpr size_t weight_index(int i) { return kWeight + 2 * static_cast<size_t>(i); }

  struct Arguments {
    const T *x, *skip;      // skip: null if the node lacks it
    AnyTensor norm_weight;  // of dtype T or float32, if present
    T* sum;                 // null if nobody reads it
    int64_t rows, depth;    // M, K
    Product products[kMostProducts];
    int count;  // of products
  };

  Arguments arguments(const Context& context) const {
    const auto x = context.input<T>(kX);
    const auto skip = context.input<T>(kSkip);
    require(x.shape.rank() >= 1, "x is a scalar, expected at least one dimension");
    require(!skip.present || skip.shape == x.shape, "skip is ", skip.shape, ", expected the shape of x, ", x.shape);
    Arguments a{};
    a.x = x.data;
    a.skip = skip.present ? skip.data : nullptr;
    a.depth = x.shape[-1];
    a.rows = x.shape.count(0, x.shape.rank() - 1);
    a.norm_weight = context.input(kNormWeight);
    if (a.norm_weight.present) {
      const Shape& shape = a.norm_weight.shape;
      require(shape == Shape{a.depth}, "norm_weight is ", shape, ", expected [", a.depth, "], the last dimension of x");
      require(a.norm_weight.dtype == kDTypeOf<T> || a.norm_weight.dtype == DType::kFloat32, "norm_weight is ",
              dtype_name(a.norm_weight.dtype), ", expected ",
              kDTypeOf<T> == DType::kFloat32 ? "" : dtype_name(kDTypeOf<T>),
              kDTypeOf<T> == DType::kFloat32 ? "" : " or ", "float32");
      require(!std::isnan(epsilon_), "attribute epsilon is missing, expected with norm_weight");
    }
    if (skip.present) a.sum = context.output<T>(kSum, x.shape).data;
    for (; a.count < kMostProducts && context.input(weight_index(a.count)).present; ++a.count)
      a.products[a.count] = product(context, a.count, x.shape);
    return a;
  }

  float epsilon_;

 private:
  static constexpr size_t kSum = kMostProducts, kScale = kWeight + 2 * kMostProducts;

  static Product product(const Context& context, int i, Shape shape) {
    const size_t index = weight_index(i);
    Product product{};
    product.weight = weight_of(context.input(index), context.input(kScale + static_cast<size_t>(i)),
                               kInputs[index].name, shape[-1], kDTypeOf<T>);
    const auto bias = context.input<T>(index + 1);
    if (bias.present) {
      require(bias.shape == Shape{product.weight.columns}, kInputs[index + 1].name, " is ", bias.shape, ", expected [",
              product.weight.columns, "]");
      product.bias = bias.data;
    }
    shape[-1] = product.weight.columns;
    product.y = context.output<T>(static_cast<size_t>(i), shape).data;
    return product;
  }
};

}  // namespace onnxfuse
