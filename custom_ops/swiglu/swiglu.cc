#include "swiglu/swiglu.h"

#include "common/op.h"

#define ONNXFUSE_KERNELS "swiglu/swiglu_kernel.h"
#include "common/each_target.h"

namespace onnxfuse {
namespace {

template <typename T>
class SwiGLU {
 public:
  static constexpr Port kInputs[] = {required<T>("gate"), required<T>("up")};
  static constexpr Port kOutputs[] = {required<T>("y")};

  static void infer(const ShapeInference& shapes) {
    if (const auto gate = shapes.input(0)) shapes.output(0, gate->dtype, gate->dims);
  }

  explicit SwiGLU(const NodeInfo&) {}

  void compute(const Context& context) const {
    const auto gate = context.input<T>(0);
    const auto up = context.input<T>(1);
    require(up.shape == gate.shape, "up is ", up.shape, ", expected the shape of gate, ", gate.shape);
    const auto y = context.output<T>(0, gate.shape);
    const auto kernel = ONNXFUSE_KERNEL(swiglu<T>);
    context.parallel_for(gate.shape.count(), 0.4, [&](int64_t begin, int64_t end) {
      kernel(gate.data + begin, up.data + begin, y.data + begin, end - begin);
    });
  }
};

const Register<SwiGLU<float>, SwiGLU<Half>, SwiGLU<BFloat16>> registered("SwiGLU");

}  // namespace
}  // namespace onnxfuse
