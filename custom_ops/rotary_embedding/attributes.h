// What nodes that rotate say of it, checked.
#pragma once

#include "common/registry.h"
#include "rotary_embedding/rotary_embedding.h"

namespace onnxfuse {

class RotaryAttributes {
 public:
  explicit RotaryAttributes(const NodeInfo& node)
      : interleaved_(node.integer("interleaved", 0)), rotary_dim_(node.integer("rotary_dim", 0)) {
    require(interleaved_ == 0 || interleaved_ == 1, "interleaved is ", interleaved_, ", expected 0 or 1");
    require(rotary_dim_ >= 0 && rotary_dim_ % 2 == 0, "rotary_dim is ", rotary_dim_, ", expected an even number or 0");
  }

  // Of an input `name` of shape x whose heads the attribute `attribute` counts, 0 where it is left out.
  RotaryLayout layout_of(const Shape& x, const Shape& cos, const Shape& sin, const char* name, const char* attribute,
                         int64_t num_heads) const {
    require(x.rank() == 3 || x.rank() == 4, name, " has rank ", x.rank(), ", expected 3 or 4");
    const bool has_head_axis = x.rank() == 4;
    require(has_head_axis || num_heads > 0, name, " has rank 3, so attribute ", attribute, " is needed");
    require(!has_head_axis || num_heads == 0 || num_heads == x[1], name, " has ", x[1], " heads, ", attribute, " is ",
            num_heads);
    require(has_head_axis || x[2] % num_heads == 0, "the last dimension of ", name, " is ", x[2],
            ", expected a multiple of ", attribute, ", ", num_heads);
    const int64_t heads = has_head_axis ? x[1] : num_heads;
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

 private:
  int64_t interleaved_, rotary_dim_;
};

}  // namespace onnxfuse
