#include "rotary_embedding/node.h"
#include "rotary_embedding/rotary_embedding.h"
#include "rotary_embedding/rotary_embedding_kernel.cuh"

namespace onnxfuse {
namespace {

template <typename T, typename W>
class RotaryEmbedding : public RotaryEmbeddingNode<T, W> {
 public:
  using RotaryEmbeddingNode<T, W>::RotaryEmbeddingNode;

  void compute(const Context& context) const {
    const auto a = this->arguments(context);
    if (a.groups == 0) return;
    cuda::rotary_embedding(cuda::Stream(context), a.cos, a.sin, cuda::Rotated<T>{a.x, a.y, a.layout, a.groups});
  }
};

const Register<RotaryEmbedding<float, float>, RotaryEmbedding<Half, Half>, RotaryEmbedding<Half, float>,
               RotaryEmbedding<BFloat16, BFloat16>, RotaryEmbedding<BFloat16, float>>
    registered("RotaryEmbedding", kCudaProvider);

}  // namespace
}  // namespace onnxfuse
