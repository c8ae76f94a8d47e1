// What a node of RotaryEmbedding says, checked: common to the kernels of all devices.
#pragma once

#include "common/registry.h"
#include "rotary_embedding/rotary_embedding.h"

namespace onnxfuse {

template <typename T, typename W>
class RotaryEmbeddingNode {
 public:
  static constexpr Port kInputs[] = {required<T>("x"), required<W>("cos"), required<W>("sin")};
  static constexpr Port kOutputs[] = {required<T>("y")};

  static void infer(const ShapeInference& shapes) {
    if (const auto x = shapes.input(0)) shapes.output(0, x->dtype, x->dims);
  }

  explicit RotaryEmbeddingNode(const NodeInfo& node)
      : num_heads_(node.integer("num_heads", 0)),
        interleaved_(node.integer("interleaved", 0)),
        rotary_dim_(node.integer("rotary_dim", 0)) {
    require(num_heads_ >= 0, "num_heads is ", num_heads_, ", expected at least 0");
    require(interleaved_ == 0 || interleaved_ == 1, "interleaved is ", interleaved_, ", expected 0 or 1");
    require(rotary_dim_ >= 0 && rotary_dim_ % 2 == 0, "rotary_dim is ", rotary_dim_, ", expected an even number or 0");
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
    const RotaryLayout layout = layout_of(x.shape, cos.shape, sin.shape);
    const auto y = context.output<T>(0, x.shape);
    const int64_t group_elements = layout.group_size * layout.head_size;
    return {x.data, cos.data, sin.data, y.data, layout, group_elements == 0 ? 0 : x.shape.count() / group_elements};
  }

 private:
  RotaryLayout layout_of(const Shape& x, const Shape& cos, const Shape& sin) const {
    require(x.rank() == 3 || x.rank() == 4, "x has rank ", x.rank(), ", expected 3 or 4");
    const bool has_head_axis = x.rank() == 4;
    require(has_head_axis || num_heads_ > 0, "x has rank 3, so attribute num_heads is needed");
    require(!has_head_axis || num_heads_ == 0 || num_heads_ == x[1], "x has ", x[1], " heads, num_heads is ",
            num_heads_);
    require(has_head_axis || x[2] % num_heads_ == 0, "the last dimension of x is ", x[2],
            ", expected a multiple of num_heads, ", num_heads_);
    const int64_t heads = has_head_axis ? x[1] : num_heads_;
    const int64_t length = has_head_axis ? x[2] : x[1];
    const int64_t d = has_head_axis ? x[3] : x[2] / heads;
    const int64_t rotary_dim = rotary_dim_ == 0 ? d : rotary_dim_;
    require(rotary_dim <= d && rotary_dim % 2 == 0, rotary_dim, " features are to be rotated of a head size of ", d,
            ", expected an even number that is not larger");
    require(sin == cos, "sin is ", sin, ", expected the shape of cos, ", cos);
    const bool fits = cos.rank() == 3 && (cos[0] == 1 || cos[0] == x[0]) && cos[1] == length &&
                      (cos[2] == rotary_dim || cos[2] == rotary_dim / 2);
    require(fits, "cos is ", cos, ", expected [", x[0], " or 1,", length, ",", rotary_dim, " or ", rotary_dim / 2, "]");

    RotaryLayout layout{};
    layout.head_size = d;
    layout.rotary_dim = rotary_dim;
    layout.table_width = cos[2];
    layout.interleaved = interleaved_ != 0;
    layout.group_size = has_head_axis ? length : heads;
    layout.table_step = has_head_axis ? cos[2] : 0;
    layout.groups_a_batch = has_head_axis ? heads : length;
    layout.table_group_step = has_head_axis ? 0 : cos[2];
    layout.table_batch_step = cos[0] == 1 ? 0 : length * cos[2];
    return layout;
  }

  int64_t num_heads_, interleaved_, rotary_dim_;
};

}  // namespace onnxfuse
