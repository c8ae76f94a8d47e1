#include "embedding/embedding.h"

#include <cstring>

#include "common/op.h"
#include "embedding/node.h"

namespace onnxfuse {
namespace {

template <typename T, typename Index>
class Embedding : public EmbeddingNode<T, Index> {
 public:
  using EmbeddingNode<T, Index>::EmbeddingNode;

  void compute(const Context& context) const {
    const auto a = this->arguments(context);
    for (int64_t i = 0; i < a.count; ++i) {
      require(a.ids[i] >= -a.rows && a.ids[i] < a.rows, "id ", a.ids[i], " is no row of the table [", a.rows, ",",
              a.width, "]");
    }
    const size_t bytes = static_cast<size_t>(a.width) * sizeof(T);
    constexpr double kNanosecondsPerByte = 0.1;
    context.parallel_for(a.count, kNanosecondsPerByte * static_cast<double>(bytes), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = a.ids[i] < 0 ? a.ids[i] + a.rows : a.ids[i];
        std::memcpy(a.y + i * a.width, a.table + row * a.width, bytes);
      }
    });
  }
};

const Register<Embedding<float, int64_t>, Embedding<float, int32_t>, Embedding<Half, int64_t>, Embedding<Half, int32_t>,
               Embedding<BFloat16, int64_t>, Embedding<BFloat16, int32_t>>
    registered("Embedding");

}  // namespace
}  // namespace onnxfuse
