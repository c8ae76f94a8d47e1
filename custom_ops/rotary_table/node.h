// What a node of RotaryTable says, checked: common to the kernels of all devices.
#pragma once

#include "common/registry.h"

namespace onnxfuse {

class RotaryTableNode {
 public:
  static constexpr Port kInputs[] = {required<int64_t>("position_ids"), required<float>("inv_freq")};
  static constexpr Port kOutputs[] = {required<float>("cos"), required<float>("sin")};

  static void infer(const ShapeInference& shapes) {
    const auto positions = shapes.input(0), inv_freq = shapes.input(1);
    if (!positions || !inv_freq || positions->dims.size() != 2 || inv_freq->dims.size() != 1) return;
    const Dims dims = {positions->dims[0], positions->dims[1], inv_freq->dims[0]};
    shapes.output(0, DType::kFloat32, dims);
    shapes.output(1, DType::kFloat32, dims);
  }

  explicit RotaryTableNode(const NodeInfo& node) : scale_(node.real("scale", 1.0f)) {}

 protected:
  struct Arguments {
    const int64_t* positions;
    const float* inv_freq;
    float *cosines, *sines;
    int64_t count, frequencies;  // positions of all batches, entries of each
  };

  Arguments arguments(const Context& context) const {
    const auto positions = context.input<int64_t>(0);
    const auto inv_freq = context.input<float>(1);
    require(positions.shape.rank() == 2, "position_ids is ", positions.shape, ", expected [batch, length]");
    require(inv_freq.shape.rank() == 1, "inv_freq is ", inv_freq.shape, ", expected [frequencies]");
    const int64_t frequencies = inv_freq.shape[0];
    const Shape shape{positions.shape[0], positions.shape[1], frequencies};
    const auto cosines = context.output<float>(0, shape);
    const auto sines = context.output<float>(1, shape);
    return {positions.data, inv_freq.data, cosines.data, sines.data, positions.shape.count(), frequencies};
  }

  float scale_;
};

}  // namespace onnxfuse
