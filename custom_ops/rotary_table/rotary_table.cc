#include "rotary_table/rotary_table.h"

#include "common/op.h"

#define ONNXFUSE_KERNELS "rotary_table/rotary_table_kernel.h"
#include "common/each_target.h"

namespace onnxfuse {
namespace {

class RotaryTable {
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

  explicit RotaryTable(const NodeInfo& node) : scale_(node.real("scale", 1.0f)) {}

  void compute(const Context& context) const {
    const auto positions = context.input<int64_t>(0);
    const auto inv_freq = context.input<float>(1);
    require(positions.shape.rank() == 2, "position_ids is ", positions.shape, ", expected [batch, length]");
    require(inv_freq.shape.rank() == 1, "inv_freq is ", inv_freq.shape, ", expected [frequencies]");
    const int64_t frequencies = inv_freq.shape[0];
    const Shape shape{positions.shape[0], positions.shape[1], frequencies};
    const auto cosines = context.output<float>(0, shape);
    const auto sines = context.output<float>(1, shape);

    const auto kernel = ONNXFUSE_KERNEL(rotary_table_positions);
    context.parallel_for(positions.shape.count(), 3.0 * static_cast<double>(frequencies),
                         [&](int64_t begin, int64_t end) {
                           kernel(positions.data + begin, end - begin, inv_freq.data, scale_,
                                  cosines.data + begin * frequencies, sines.data + begin * frequencies, frequencies);
                         });
  }

 private:
  float scale_;
};

const Register<RotaryTable> registered("RotaryTable");

}  // namespace
}  // namespace onnxfuse
