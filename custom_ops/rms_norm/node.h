// What a node of RMSNorm says, checked: common to the kernels of all devices.
#pragma once

#include "common/registry.h"

namespace onnxfuse {

template <typename T, typename W>
class RMSNormNode {
 public:
  static constexpr Port kInputs[] = {required<T>("x"), required<W>("weight")};
  static constexpr Port kOutputs[] = {required<T>("y")};

  static void infer(const ShapeInference& shapes) {
    if (const auto x = shapes.input(0)) shapes.output(0, x->dtype, x->dims);
  }

  explicit RMSNormNode(const NodeInfo& node) : epsilon_(node.real("epsilon")) {}

 protected:
  struct Arguments {
    const T* x;
    const W* weight;
    T* y;
    int64_t rows, d;
  };

  Arguments arguments(const Context& context) const {
    const auto x = context.input<T>(0);
    const auto weight = context.input<W>(1);
    require(x.shape.rank() >= 1, "x is a scalar, expected at least one dimension");
    const int64_t d = x.shape[-1];
    require(weight.shape == Shape{d}, "weight is ", weight.shape, ", expected [", d, "], the last dimension of x");
    const int64_t rows = x.shape.count(0, x.shape.rank() - 1);
    return {x.data, weight.data, context.output<T>(0, x.shape).data, rows, d};
  }

  float epsilon_;
};

}  // namespace onnxfuse
