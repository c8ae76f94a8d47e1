#include "rms_norm/rms_norm.h"

#include "common/op.h"

#define ONNXFUSE_KERNELS "rms_norm/rms_norm_kernel.h"
#include "common/each_target.h"

namespace onnxfuse {
namespace {

template <typename T, typename W>
class RMSNorm {
 public:
  static constexpr Port kInputs[] = {required<T>("x"), required<W>("weight")};
  static constexpr Port kOutputs[] = {required<T>("y")};

  static void infer(const ShapeInference& shapes) {
    if (const auto x = shapes.input(0)) shapes.output(0, x->dtype, x->dims);
  }

  explicit RMSNorm(const NodeInfo& node) : epsilon_(node.real("epsilon")) {}

  void compute(const Context& context) const {
    const auto x = context.input<T>(0);
    const auto weight = context.input<W>(1);
    require(x.shape.rank() >= 1, "x is a scalar, expected at least one dimension");
    const int64_t d = x.shape[-1];
    require(weight.shape == Shape{d}, "weight is ", weight.shape, ", expected [", d, "], the last dimension of x");
    const auto y = context.output<T>(0, x.shape);

    const auto kernel = ONNXFUSE_KERNEL(rms_norm_rows<T, W>);
    const int64_t rows = x.shape.count(0, x.shape.rank() - 1);
    context.parallel_for(rows, 0.15 * static_cast<double>(d), [&](int64_t begin, int64_t end) {
      kernel(x.data + begin * d, weight.data, y.data + begin * d, end - begin, d, epsilon_);
    });
  }

 private:
  float epsilon_;
};

const Register<RMSNorm<float, float>, RMSNorm<Half, Half>, RMSNorm<Half, float>, RMSNorm<BFloat16, BFloat16>,
               RMSNorm<BFloat16, float>>
    registered("RMSNorm");

}  // namespace
}  // namespace onnxfuse
