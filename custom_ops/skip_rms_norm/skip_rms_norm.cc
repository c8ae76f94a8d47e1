#include "skip_rms_norm/skip_rms_norm.h"

#include "common/op.h"
#include "skip_rms_norm/node.h"

#define ONNXFUSE_KERNELS "skip_rms_norm/skip_rms_norm_kernel.h"
#include "common/each_target.h"

namespace onnxfuse {
namespace {

template <typename T, typename W>
class SkipRMSNorm : public SkipRMSNormNode<T, W> {
 public:
  using SkipRMSNormNode<T, W>::SkipRMSNormNode;

  void compute(const Context& context) const {
    const auto a = this->arguments(context);
    const auto kernel = ONNXFUSE_KERNEL(skip_rms_norm_rows<T, W>);
    context.parallel_for(a.rows, 0.3 * static_cast<double>(a.d), [&](int64_t begin, int64_t end) {
      const int64_t first = begin * a.d;
      kernel(a.x + first, a.skip + first, a.weight, a.y + first, a.sum + first, end - begin, a.d, this->epsilon_);
    });
  }
};

const Register<SkipRMSNorm<float, float>, SkipRMSNorm<Half, Half>, SkipRMSNorm<Half, float>,
               SkipRMSNorm<BFloat16, BFloat16>, SkipRMSNorm<BFloat16, float>>
    registered("SkipRMSNorm");

}  // namespace
}  // namespace onnxfuse
