#include "rms_norm/rms_norm.h"

#include "common/op.h"
#include "rms_norm/node.h"

#define ONNXFUSE_KERNELS "rms_norm/rms_norm_kernel.h"
#include "common/each_target.h"

namespace onnxfuse {
namespace {

template <typename T, typename W>
class RMSNorm : public RMSNormNode<T, W> {
 public:
  using RMSNormNode<T, W>::RMSNormNode;

  void compute(const Context& context) const {
    const auto a = this->arguments(context);
    const auto kernel = ONNXFUSE_KERNEL(rms_norm_rows<T, W>);
    context.parallel_for(a.rows, 0.15 * static_cast<double>(a.d), [&](int64_t begin, int64_t end) {
      kernel(a.x + begin * a.d, a.weight, a.y + begin * a.d, end - begin, a.d, this->epsilon_);
    });
  }
};

const Register<RMSNorm<float, float>, RMSNorm<Half, Half>, RMSNorm<Half, float>, RMSNorm<BFloat16, BFloat16>,
               RMSNorm<BFloat16, float>>
    registered("RMSNorm");

}  // namespace
}  // namespace onnxfuse
