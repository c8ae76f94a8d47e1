#include "linear/linear.h"

#include <optional>

#include "common/gemm.h"
#include "common/op.h"
#include "linear/node.h"

#define ONNXFUSE_KERNELS "linear/linear_kernel.h"
#include "common/each_target.h"

namespace onnxfuse {
namespace {

// Rows that are normalised and cut into tiles at a time, which bounds the scratch memory.
constexpr int64_t kRows = 480;

template <typename T>
class Linear : public LinearNode<T> {
 public:
  using LinearNode<T>::LinearNode;

  void compute(const Context& context) const {
    const auto a = this->arguments(context);
    if (a.rows == 0) return;
    const int64_t most = std::min(a.rows, kRows);
    const auto tiles = context.scratch<float>(TileLayout(most, a.depth).floats());
    std::optional<Scratch<T>> sum, normed;
    if (a.skip != nullptr && a.sum == nullptr) sum.emplace(context, most * a.depth);
    if (a.norm_weight.present) normed.emplace(context, most * a.depth);
    for (int64_t row = 0; row < a.rows; row += kRows) {
      const int64_t first = row * a.depth;
      const TileLayout layout(std::min(kRows, a.rows - row), a.depth);
      T* total = a.sum != nullptr ? a.sum + first : sum ? sum->data() : nullptr;
      const T* h = prepared(context, a, row, layout.rows, total, normed ? normed->data() : nullptr);
      copy_rows(context, h, layout, tiles.data());
      multiply_all(context, a, row, layout, tiles.data());
    }
  }

 private:
  using Arguments = typename LinearNode<T>::Arguments;

  // `rows` rows of h from row `first` on: where they are already, or in `total` or `normed`.
  const T* prepared(const Context& context, const Arguments& a, int64_t first, int64_t rows, T* total,
                    T* normed) const {
    const T* x = a.x + first * a.depth;
    const T* skip = a.skip != nullptr ? a.skip + first * a.depth : nullptr;
    if (skip == nullptr && normed == nullptr) return x;
    const auto add = ONNXFUSE_KERNEL(add_rows<T>);
    const auto norm = ONNXFUSE_KERNEL(rms_norm_rows<T, T>);
    const auto norm_by_floats = ONNXFUSE_KERNEL(rms_norm_rows<T, float>);
    const void* weight = a.norm_weight.data;
    const bool same = a.norm_weight.dtype == kDTypeOf<T>;
    context.parallel_for(rows, 0.3 * static_cast<double>(a.depth), [&](int64_t begin, int64_t end) {
      const int64_t at = begin * a.depth, count = end - begin;
      const T* in = x + at;
      if (skip != nullptr) {
        add(in, skip + at, total + at, count * a.depth);
        in = total + at;
      }
      if (normed == nullptr) return;
      if (same)
        norm(in, static_cast<const T*>(weight), normed + at, count, a.depth, this->epsilon_);
      else
        norm_by_floats(in, static_cast<const float*>(weight), normed + at, count, a.depth, this->epsilon_);
    });
    return normed != nullptr ? normed : total;
  }

  void multiply_all(const Context& context, const Arguments& a, int64_t first, const TileLayout& layout,
                    const float* tiles) const {
    const auto round = ONNXFUSE_KERNEL(round_block<T>);
    Weight weights[kMostProducts];
    for (int i = 0; i < a.count; ++i) weights[i] = a.products[i].weight;
    for_each_block_of_each(context, layout, tiles, weights, a.count, [&](int64_t i, const GemmBlock& block) {
      const auto& product = a.products[i];
      const int64_t columns = product.weight.columns;
      round(block, product.bias, product.y + first * columns, columns);
    });
  }
};

const Register<Linear<float>, Linear<Half>, Linear<BFloat16>> registered("Linear");

}  // namespace
}  // namespace onnxfuse
