// What a node of SkipRMSNorm says, checked: common to the kernels of all devices.
#pragma once

#include "common/registry.h"

namespace onnxfuse {

template <typename T, typename W>
class SkipRMSNormNode {
 public:
  static constexpr Port kInputs[] = {required<T>("x"), required<T>("skip"), required<W>("weight")};
  static constexpr Port kOutputs[] = {required<T>("y"), required<T>("sum")};

  static void infer(const ShapeInference& shapes) {
    const auto x = shapes.input(0);
    if (!x) return;
    shapes.output(0, x->dtype, x->dims);
    shapes.output(1, x->dtype, x->dims);
  }

  explicit SkipRMSNormNode(const NodeInfo& node) : epsilon_(node.real("epsilon")) {}

 protected:
  struct Arguments {
    const T *x, *skip;
    const W* weight;
    T *y, *sum;
    int64_t rows, d;
  };

  Arguments arguments(const Context& context) const {
    const auto x = context.input<T>(0);
    const auto skip = context.input<T>(1);
    const auto weight = context.input<W>(2);
    require(x.shape.rank() >= 1, "x is a scalar, expected at least one dimension");
    require(skip.shape == x.shape, "skip is ", skip.shape, ", expected the shape of x, ", x.shape);
    const int64_t d = x.shape[-1];
    require(weight.shape == Shape{d}, "weight is ", weight.shape, ", expected [", d, "], the last dimension of x");
    const auto y = context.output<T>(0, x.shape);
    const auto sum = context.output<T>(1, x.shape);
    return {x.data, skip.data, weight.data, y.data, sum.data, x.shape.count(0, x.shape.rank() - 1), d};
  }

  float epsilon_;
};

}  // namespace onnxfuse
