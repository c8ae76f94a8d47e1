#include "swiglu/node.h"
#include "swiglu/swiglu.h"
#include "swiglu/swiglu_triton.h"  // written by compile_triton.py

namespace onnxfuse {
namespace {

template <typename T>
class SwiGLU : public SwiGLUNode<T> {
 public:
  using SwiGLUNode<T>::SwiGLUNode;

  void compute(const Context& context) const {
    const auto a = this->arguments(context);
    const bool vectors =
        a.count % 16 == 0 && cuda::is_aligned(a.gate) && cuda::is_aligned(a.up) && cuda::is_aligned(a.y);
    const auto launch = vectors ? triton::swiglu_vectors<T> : triton::swiglu<T>;
    launch(cuda::Stream(context), cuda::blocks(cuda::divide_up(a.count, triton::swiglu_BLOCK)), a.gate, a.up, a.y,
           a.count);
  }
};

const Register<SwiGLU<float>, SwiGLU<Half>, SwiGLU<BFloat16>> registered("SwiGLU", kCudaProvider, Language::kTriton);

}  // namespace
}  // namespace onnxfuse
