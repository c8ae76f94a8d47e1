#include "rotary_embedding/rotary_embedding.h"

#include "common/op.h"
#include "rotary_embedding/node.h"

#define ONNXFUSE_KERNELS "rotary_embedding/rotary_embedding_kernel.h"
#include "common/each_target.h"

namespace onnxfuse {
namespace {

template <typename T, typename W>
class RotaryEmbedding : public RotaryEmbeddingNode<T, W> {
 public:
  using RotaryEmbeddingNode<T, W>::RotaryEmbeddingNode;

  void compute(const Context& context) const {
    const auto a = this->arguments(context);
    const auto kernel = ONNXFUSE_KERNEL(rotary_embedding_groups<T, W>);
    const double nanoseconds = 0.2 * static_cast<double>(a.layout.group_size * a.layout.head_size);
    context.parallel_for(a.groups, nanoseconds,
                         [&](int64_t begin, int64_t end) { kernel(a.x, a.cos, a.sin, a.y, a.layout, begin, end); });
  }
};

const Register<RotaryEmbedding<float, float>, RotaryEmbedding<Half, Half>, RotaryEmbedding<Half, float>,
               RotaryEmbedding<BFloat16, BFloat16>, RotaryEmbedding<BFloat16, float>>
    registered("RotaryEmbedding");

}  // namespace
}  // namespace onnxfuse
