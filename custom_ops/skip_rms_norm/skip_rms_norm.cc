#include "skip_rms_norm/skip_rms_norm.h"

#include "common/op.h"

#define ONNXFUSE_KERNELS "skip_rms_norm/skip_rms_norm_kernel.h"
#include "common/each_target.h"

namespace onnxfuse {
namespace {

template <typename T, typename W>
class SkipRMSNorm {
 public:
  static constexpr Port kInputs[] = {required<T>("x"), required<T>("skip"), required<W>("weight")};
  static constexpr Port kOutputs[] = {required<T>("y"), required<T>("sum")};

  static void infer(const ShapeInference& shapes) {
    const auto x = shapes.input(0);
    if (!x) return;
    shapes.output(0, x->dtype, x->dims);
    shapes.output(1, x->dtype, x->dims);
  }

  explicit SkipRMSNorm(const NodeInfo& node) : epsilon_(node.real("epsilon")) {}

  void compute(const Context& context) const {
    const auto x = context.input<T>(0);
    const auto skip = context.input<T>(1);
    const auto weight = context.input<W>(2);
    require(x.shape.rank() >= 1, "x is a scalar, expected at least one dimension");
    require(skip.shape == x.shape, "skip is ", skip.shape, ", expected the shape of x, ", x.shape);
    const int64_t d = x.shape[-1];
    require(weight.shape == Shape{d}, "weight is ", weight.shape, ", expected [", d, "], the last dimension of x");
    const auto y = context.output<T>(0, x.shape);
    const auto sum = context.output<T>(1, x.shape);

    const auto kernel = ONNXFUSE_KERNEL(skip_rms_norm_rows<T, W>);
    const int64_t rows = x.shape.count(0, x.shape.rank() - 1);
    context.parallel_for(rows, 0.3 * static_cast<double>(d), [&](int64_t begin, int64_t end) {
      const int64_t first = begin * d;
      kernel(x.data + first, skip.data + first, weight.data, y.data + first, sum.data + first, end - begin, d,
             epsilon_);
    });
  }

 private:
  float epsilon_;
};

const Register<SkipRMSNorm<float, float>, SkipRMSNorm<Half, Half>, SkipRMSNorm<Half, float>,
               SkipRMSNorm<BFloat16, BFloat16>, SkipRMSNorm<BFloat16, float>>
    registered("SkipRMSNorm");

}  // namespace
}  // namespace onnxfuse
