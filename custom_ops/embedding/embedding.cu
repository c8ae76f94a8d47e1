#include "common/device.cuh"
#include "common/early_start.cuh"
#include "embedding/embedding.h"
#include "embedding/node.h"

namespace onnxfuse {
namespace cuda {

inline constexpr unsigned kEmbeddingThreads = 256;

// A thread owns kLanes neighbouring elements of a row; reads and writes sizeof(T) bytes an element.
template <int kLanes, typename T, typename Index>
__global__ void __launch_bounds__(kEmbeddingThreads)
    embedding_cuda(const Index* ids, const T* table, T* y, int64_t count, int64_t rows, int64_t width) {
  let_next_start();
  const int64_t vectors = width / kLanes, i = static_cast<int64_t>(blockIdx.x) * kEmbeddingThreads + threadIdx.x;
  wait_for_previous();
  if (i >= count * vectors) return;
  const int64_t id = ids[i / vectors], row = id < 0 ? id + rows : id, at = i % vectors * kLanes;
  Vector<T, kLanes> vector;
  if (row >= 0 && row < rows) {
    vector = *reinterpret_cast<const Vector<T, kLanes>*>(table + row * width + at);
  } else {
#pragma unroll
    for (T& lane : vector.lane) lane = narrow<T>(NAN);
  }
  *reinterpret_cast<Vector<T, kLanes>*>(y + i * kLanes) = vector;
}

}  // namespace cuda

namespace {

template <typename T, typename Index>
class Embedding : public EmbeddingNode<T, Index> {
 public:
  using EmbeddingNode<T, Index>::EmbeddingNode;

  void compute(const Context& context) const {
    const auto a = this->arguments(context);
    const auto launch = [&](auto lanes) {
      constexpr int kLanes = decltype(lanes)::value;
      const int64_t vectors = a.count * (a.width / kLanes);
      cuda::Stream(context).launch_early("Embedding", cuda::embedding_cuda<kLanes, T, Index>,
                                         cuda::blocks(cuda::divide_up(vectors, cuda::kEmbeddingThreads)),
                                         cuda::kEmbeddingThreads, 0, a.ids, a.table, a.y, a.count, a.rows, a.width);
    };
    const bool has_vectors = a.width % cuda::kLanes<T> == 0 && cuda::is_aligned(a.table) && cuda::is_aligned(a.y);
    if (has_vectors) {
      launch(std::integral_constant<int, cuda::kLanes<T>>{});
    } else {
      launch(std::integral_constant<int, 1>{});
    }
  }
};

const Register<Embedding<float, int64_t>, Embedding<float, int32_t>, Embedding<Half, int64_t>, Embedding<Half, int32_t>,
               Embedding<BFloat16, int64_t>, Embedding<BFloat16, int32_t>>
    registered("Embedding", kCudaProvider);

}  // namespace
}  // namespace onnxfuse
