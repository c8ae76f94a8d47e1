#include "rms_norm/rms_norm_kernel.cuh"
#include "skip_rms_norm/node.h"
#include "skip_rms_norm/skip_rms_norm.h"

namespace onnxfuse {
namespace {

template <typename T, typename W>
class SkipRMSNorm : public SkipRMSNormNode<T, W> {
 public:
  using SkipRMSNormNode<T, W>::SkipRMSNormNode;

  void compute(const Context& context) const {
    const auto a = this->arguments(context);
    cuda::rms_norm_rows<true>(cuda::Stream(context), a.x, a.skip, a.weight, a.y, a.sum, a.rows, a.d, this->epsilon_);
  }
};

const Register<SkipRMSNorm<float, float>, SkipRMSNorm<Half, Half>, SkipRMSNorm<Half, float>,
               SkipRMSNorm<BFloat16, BFloat16>, SkipRMSNorm<BFloat16, float>>
    registered("SkipRMSNorm", kCudaProvider);

}  // namespace
}  // namespace onnxfuse
