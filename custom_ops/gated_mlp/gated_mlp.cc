#include "gated_mlp/gated_mlp.h"

#include <optional>

#include "common/gemm.h"
#include "common/op.h"
#include "gated_mlp/node.h"

#define ONNXFUSE_KERNELS "gated_mlp/gated_mlp_kernel.h"
#include "common/each_target.h"

namespace onnxfuse {
namespace {

// Rows whose hidden values are kept at a time, at most: it bounds the scratch memory, and is large enough for reading
// the weights again for every such block to cost nothing beside the products.
constexpr int64_t kHiddenRows = 512;

template <typename T>
using GateBlock = void(const GemmBlock& block, const T* gate_bias, const T* up_bias, int64_t columns);

template <typename T>
GateBlock<T>* gate_kernel(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return ONNXFUSE_KERNEL(gate_block<Activation::kSilu, T>);
    case Activation::kGelu:
      return ONNXFUSE_KERNEL(gate_block<Activation::kGelu, T>);
    case Activation::kGeluTanh:
      return ONNXFUSE_KERNEL(gate_block<Activation::kGeluTanh, T>);
  }
  fail("an activation without a kernel");
}

template <typename T>
class GatedMLP : public GatedMLPNode<T> {
 public:
  using GatedMLPNode<T>::GatedMLPNode;

  void compute(const Context& context) const {
    const auto a = this->arguments(context);
    if (a.rows == 0) return;
    const int64_t hidden_width = a.gate.columns;
    const Weight gated[] = {a.gate, a.up};
    const auto gate = gate_kernel<T>(this->activation_);
    const auto round = ONNXFUSE_KERNEL(round_block<T>);
    const int64_t passes = (a.rows + kHiddenRows - 1) / kHiddenRows, most = (a.rows + passes - 1) / passes;
    const auto in_layout = [&](int64_t rows) { return TileLayout(rows, a.width, kDTypeOf<T>, a.gate.dtype); };
    const auto hidden_layout = [&](int64_t rows) {
      return TileLayout(rows, hidden_width, DType::kFloat32, a.down.dtype);
    };
    const auto tiles = context.scratch<char>(in_layout(most).bytes());
    const auto hidden = context.scratch<char>(hidden_layout(most).bytes());
    std::optional<Scratch<T>> sum, normed;
    if (a.skip != nullptr && a.sum == nullptr) sum.emplace(context, most * a.width);
    if (a.norm_weight.present) normed.emplace(context, most * a.width);
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t first = a.rows * pass / passes, count = a.rows * (pass + 1) / passes - first;
      const TileLayout in = in_layout(count), between = hidden_layout(count);
      T* const total = a.sum != nullptr ? a.sum + first * a.width : sum ? sum->data() : nullptr;
      const T* const h = prepared(context, a, first, count, total, normed ? normed->data() : nullptr);
      cut_into_tiles(context, h, in, tiles.data());
      for_each_block(context, in, tiles.data(), gated, 2, [&](const GemmBlock& block) {
        gate(block, a.gate_bias, a.up_bias, hidden_width);
        write_tiles(between, block.source(0), hidden.data());
      });
      T* out = a.y + first * a.down.columns;
      for_each_block(context, between, hidden.data(), &a.down, 1,
                     [&](const GemmBlock& block) { round(block, a.down_bias, out, a.down.columns); });
    }
  }

 private:
  // `rows` rows of h from row `first` on: where they are already, or in `total` or `normed`.
  template <typename Arguments>
  const T* prepared(const Context& context, const Arguments& a, int64_t first, int64_t rows, T* total,
                    T* normed) const {
    const T* const x = a.x + first * a.width;
    const T* const skip = a.skip != nullptr ? a.skip + first * a.width : nullptr;
    const auto add = ONNXFUSE_KERNEL(add_rows<T>);
    const auto norm = ONNXFUSE_KERNEL(rms_norm_rows<T, T>);
    const auto norm_by_floats = ONNXFUSE_KERNEL(rms_norm_rows<T, float>);
    const void* const weight = a.norm_weight.data;
    const bool same = a.norm_weight.dtype == kDTypeOf<T>;
    if (skip == nullptr && normed == nullptr) return x;
    context.parallel_for(rows, 0.3 * static_cast<double>(a.width), [&](int64_t begin, int64_t end) {
      const int64_t at = begin * a.width, count = end - begin;
      const T* in = x + at;
      if (skip != nullptr) {
        add(in, skip + at, total + at, count * a.width);
        in = total + at;
      }
      if (normed == nullptr) return;
      if (same) {
        norm(in, static_cast<const T*>(weight), normed + at, count, a.width, this->epsilon_);
      } else {
        norm_by_floats(in, static_cast<const float*>(weight), normed + at, count, a.width, this->epsilon_);
      }
    });
    return normed != nullptr ? normed : total;
  }
};

const Register<GatedMLP<float>, GatedMLP<Half>, GatedMLP<BFloat16>> registered("GatedMLP");

}  // namespace
}  // namespace onnxfuse
