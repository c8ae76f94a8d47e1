#include "linear/linear.h"

#include <optional>

#include "common/gemm.h"
#include "common/op.h"
#include "linear/node.h"

#define ONNXFUSE_KERNELS "linear/linear_kernel.h"
#include "common/each_target.h"

namespace onnxfuse {
namespace {

// Rows that are normalised and cut into tiles at a time, at most: it bounds the scratch memory.
constexpr int64_t kMostRows = 512;

template <typename T>
class Linear : public LinearNode<T> {
 public:
  using LinearNode<T>::LinearNode;

  void compute(const Context& context) const {
    const auto a = this->arguments(context);
    if (a.rows == 0) return;
    const int64_t passes = (a.rows + kMostRows - 1) / kMostRows, most = (a.rows + passes - 1) / passes;
    std::optional<Scratch<T>> sum, normed;
    if (a.skip != nullptr && a.sum == nullptr) sum.emplace(context, most * a.depth);
    if (a.norm_weight.present) normed.emplace(context, most * a.depth);
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t first = a.rows * pass / passes, rows = a.rows * (pass + 1) / passes - first;
      T* total = a.sum != nullptr ? a.sum + first * a.depth : sum ? sum->data() : nullptr;
      const T* h = prepared(context, a, first, rows, total, normed ? normed->data() : nullptr);
      for (const DType dtype : {kDTypeOf<T>, DType::kBFloat16}) {
        multiply_by(context, a, dtype, h, first, rows);
        if constexpr (!std::is_same_v<T, float>) break;  // there are weights of this dtype only
      }
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

  // The products of h by the weights of one dtype, which decides on the tiles.
  void multiply_by(const Context& context, const Arguments& a, DType dtype, const T* h, int64_t first,
                   int64_t rows) const {
    Weight weights[kMostProducts];
    int products[kMostProducts], count = 0;
    for (int i = 0; i < a.count; ++i) {
      if (a.products[i].weight.dtype != dtype) continue;
      weights[count] = a.products[i].weight;
      products[count++] = i;
    }
    if (count == 0) return;
    const TileLayout layout(rows, a.depth, kDTypeOf<T>, dtype);
    const auto tiles = context.scratch<char>(layout.bytes());
    cut_into_tiles(context, h, layout, tiles.data());
    const auto round = ONNXFUSE_KERNEL(round_block<T>);
    for_each_block_of_each(context, layout, tiles.data(), weights, count, [&](int64_t i, const GemmBlock& block) {
      const auto& product = a.products[products[i]];
      const int64_t columns = product.weight.columns;
      round(block, product.bias, product.y + first * columns, columns);
    });
  }
};

// The names say what a node of a block has before its projections: see onnxfuse/blocks.py.
using Kernels = Register<Linear<float>, Linear<Half>, Linear<BFloat16>>;
const Kernels plain("Linear"), with_norm("NormLinear"), with_skip_and_norm("SkipNormLinear");

}  // namespace
}  // namespace onnxfuse
