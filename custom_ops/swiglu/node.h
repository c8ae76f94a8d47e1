// What a node of SwiGLU says, checked: common to the kernels of all devices.
#pragma once

#include "common/registry.h"

namespace onnxfuse {

template <typename T>
class SwiGLUNode {
 public:
  static constexpr Port kInputs[] = {required<T>("gate"), required<T>("up")};
  static constexpr Port kOutputs[] = {required<T>("y")};

  static void infer(const ShapeInference& shapes) {
    if (const auto gate = shapes.input(0)) shapes.output(0, gate->dtype, gate->dims);
  }

  explicit SwiGLUNode(const NodeInfo&) {}

 protected:
  struct Arguments {
    const T *gate, *up;
    T* y;
    int64_t count;
  };

  Arguments arguments(const Context& context) const {
    const auto gate = context.input<T>(0);
    const auto up = context.input<T>(1);
    require(up.shape == gate.shape, "up is ", up.shape, ", expected the shape of gate, ", gate.shape);
    return {gate.data, up.data, context.output<T>(0, gate.shape).data, gate.shape.count()};
  }
};

}  // namespace onnxfuse
