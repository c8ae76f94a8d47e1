#include "swiglu/node.h"
#include "swiglu/swiglu.h"
#include "swiglu/swiglu_kernel.cuh"

namespace onnxfuse {
namespace {

template <typename T>
class SwiGLU : public SwiGLUNode<T> {
 public:
  using SwiGLUNode<T>::SwiGLUNode;

  void compute(const Context& context) const {
    const auto a = this->arguments(context);
    cuda::swiglu(cuda::Stream(context), a.gate, a.up, a.y, a.count);
  }
};

const Register<SwiGLU<float>, SwiGLU<Half>, SwiGLU<BFloat16>> registered("SwiGLU", kCudaProvider);

}  // namespace
}  // namespace onnxfuse
