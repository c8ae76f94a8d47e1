// What a node of GatedMLP says, checked: common to the kernels of all devices.
#pragma once

#include <cmath>
#include <string>

#include "common/gemm.h"
#include "common/registry.h"
#include "gated_mlp/gated_mlp.h"

namespace onnxfuse {

inline Activation activation_named(const std::string& name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  fail("activation is '", name, "', expected silu, gelu or gelu_tanh");
}

template <typename T>
class GatedMLPNode {
 public:
  static constexpr Port kInputs[] = {required<T>("x"),           any("gate_weight"),       any("up_weight"),
                                     any("down_weight"),         optional<T>("gate_bias"), optional<T>("up_bias"),
                                     optional<T>("down_bias"),   optional<T>("skip"),      optional_any("norm_weight"),
                                     optional_any("gate_scale"), optional_any("up_scale"), optional_any("down_scale")};
  static constexpr Port kOutputs[] = {required<T>("y"), optional<T>("sum")};

  static void infer(const ShapeInference& shapes) {
    auto y = shapes.input(0);
    const auto down = shapes.input(3);
    if (!y) return;
    shapes.output(1, y->dtype, y->dims);
    if (!down) return;
    y->dims.back() = columns_of(*down);
    shapes.output(0, y->dtype, y->dims);
  }

  explicit GatedMLPNode(const NodeInfo& node)
      : activation_(activation_named(node.text("activation"))), epsilon_(node.real("epsilon", NAN)) {}

 protected:
  struct Arguments {
    const T* x;
    int64_t rows, width;  // M, H
    Weight gate, up, down;
    const T *gate_bias, *up_bias, *down_bias;  // null if the node lacks them
    const T* skip;                             // as well
    AnyTensor norm_weight;                     // of dtype T or float32, if present
    T *y, *sum;                                // sum: null if nobody reads it
  };

  Arguments arguments(const Context& context) const {
    const auto x = context.input<T>(0);
    require(x.shape.rank() >= 1, "x is a scalar, expected at least one dimension");
    Arguments a{};
    a.x = x.data;
    a.width = x.shape[-1];
    a.rows = x.shape.count(0, x.shape.rank() - 1);
    a.gate = weight_of(context.input(1), context.input(kScale), "gate_weight", a.width, kDTypeOf<T>);
    a.up = weight_of(context.input(2), context.input(kScale + 1), "up_weight", a.width, kDTypeOf<T>);
    require(a.up.columns == a.gate.columns, "up_weight has ", a.up.columns, " columns, gate_weight has ",
            a.gate.columns, ": expected equal numbers");
    require(a.up.dtype == a.gate.dtype, "up_weight is ", dtype_name(a.up.dtype), ", gate_weight is ",
            dtype_name(a.gate.dtype), ": expected equal dtypes");
    a.down = weight_of(context.input(3), context.input(kScale + 2), "down_weight", a.gate.columns, kDTypeOf<T>);
    a.gate_bias = bias_of(context, 4, a.gate.columns);
    a.up_bias = bias_of(context, 5, a.gate.columns);
    a.down_bias = bias_of(context, 6, a.down.columns);
    set_norm(context, x.shape, &a);
    Shape shape = x.shape;
    shape[-1] = a.down.columns;
    a.y = context.output<T>(0, shape).data;
    return a;
  }

  static constexpr size_t kSkip = 7, kNormWeight = 8, kScale = 9;

  Activation activation_;
  float epsilon_;

 private:
  // What is done to x before the projections.
  void set_norm(const Context& context, const Shape& x, Arguments* a) const {
    const auto skip = context.input<T>(kSkip);
    require(!skip.present || skip.shape == x, "skip is ", skip.shape, ", expected the shape of x, ", x);
    if (skip.present) {
      a->skip = skip.data;
      a->sum = context.output<T>(1, x).data;
    }
    a->norm_weight = context.input(kNormWeight);
    if (!a->norm_weight.present) return;
    const Shape& shape = a->norm_weight.shape;
    const DType dtype = a->norm_weight.dtype;
    require(shape == Shape{a->width}, "norm_weight is ", shape, ", expected [", a->width, "], the last dimension of x");
    require(dtype == kDTypeOf<T> || dtype == DType::kFloat32, "norm_weight is ", dtype_name(dtype), ", expected ",
            dtype_name(kDTypeOf<T>), " or float32");
    require(!std::isnan(epsilon_), "attribute epsilon is missing, expected with norm_weight");
  }

  static const T* bias_of(const Context& context, size_t index, int64_t columns) {
    const auto bias = context.input<T>(index);
    if (!bias.present) return nullptr;
    require(bias.shape == Shape{columns}, kInputs[index].name, " is ", bias.shape, ", expected [", columns, "]");
    return bias.data;
  }
};

}  // namespace onnxfuse
