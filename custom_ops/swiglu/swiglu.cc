#include "swiglu/swiglu.h"

#include "common/op.h"
#include "swiglu/node.h"

#define ONNXFUSE_KERNELS "swiglu/swiglu_kernel.h"
#include "common/each_target.h"

namespace onnxfuse {
namespace {

template <typename T>
class SwiGLU : public SwiGLUNode<T> {
 public:
  using SwiGLUNode<T>::SwiGLUNode;

  void compute(const Context& context) const {
    const auto a = this->arguments(context);
    const auto kernel = ONNXFUSE_KERNEL(swiglu<T>);
    context.parallel_for(a.count, 0.4, [&](int64_t begin, int64_t end) {
      kernel(a.gate + begin, a.up + begin, a.y + begin, end - begin);
    });
  }
};

const Register<SwiGLU<float>, SwiGLU<Half>, SwiGLU<BFloat16>> registered("SwiGLU");

}  // namespace
}  // namespace onnxfuse
