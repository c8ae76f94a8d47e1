// What a node of RotaryEmbedding says, checked: common to the kernels of all devices.
#pragma once

#include "common/registry.h"
#include "rotary_embedding/attributes.h"

namespace onnxfuse {

template <typename T, typename W>
class RotaryEmbeddingNode {
 public:
  static constexpr Port kInputs[] = {required<T>("x"), required<W>("cos"), required<W>("sin")};
  static constexpr Port kOutputs[] = {required<T>("y")};

  static void infer(const ShapeInference& shapes) {
    if (const auto x = shapes.input(0)) shapes.output(0, x->dtype, x->dims);
  }

  explicit RotaryEmbeddingNode(const NodeInfo& node) : rotary_(node), num_heads_(node.integer("num_heads", 0)) {
    require(num_heads_ >= 0, "num_heads is ", num_heads_, ", expected at least 0");
  }

 protected:
  struct Arguments {
    const T* x;
    const W *cos, *sin;
    T* y;
    RotaryLayout layout;
    int64_t groups;
  };

  Arguments arguments(const Context& context) const {
    const auto x = context.input<T>(0);
    const auto cos = context.input<W>(1);
    const auto sin = context.input<W>(2);
    const RotaryLayout layout = rotary_.layout_of(x.shape, cos.shape, sin.shape, "x", "num_heads", num_heads_);
    const auto y = context.output<T>(0, x.shape);
    const int64_t group_elements = layout.group_size * layout.head_size;
    return {x.data, cos.data, sin.data, y.data, layout, group_elements == 0 ? 0 : x.shape.count() / group_elements};
  }

 private:
  RotaryAttributes rotary_;
  int64_t num_heads_;
};

}  // namespace onnxfuse
