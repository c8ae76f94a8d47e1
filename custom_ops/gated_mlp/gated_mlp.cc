#include "gated_mlp/gated_mlp.h"

#include "common/gemm.h"
#include "common/op.h"
#include "gated_mlp/node.h"

#define ONNXFUSE_KERNELS "gated_mlp/gated_mlp_kernel.h"
#include "common/each_target.h"

namespace onnxfuse {
namespace {

// Rows whose hidden values, [rows, I] float32, are kept at a time: it bounds the scratch memory, and is large enough
// for reading the weights again for every such block to cost nothing beside the products.
constexpr int64_t kHiddenRows = 480;

template <typename T>
using GateBlock = void(const GemmBlock& block, const T* gate_bias, const T* up_bias, const TileLayout& layout,
                       float* hidden);

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
    const int64_t hidden_width = a.gate.columns;
    const Weight gated[] = {a.gate, a.up};
    const auto gate = gate_kernel<T>(this->activation_);
    const auto round = ONNXFUSE_KERNEL(round_block<T>);
    const int64_t most = std::min(a.rows, kHiddenRows);
    const auto tiles = context.scratch<float>(TileLayout(most, a.width).floats());
    const auto hidden = context.scratch<float>(TileLayout(most, hidden_width).floats());
    for (int64_t row = 0; row < a.rows; row += kHiddenRows) {
      const TileLayout in(std::min(kHiddenRows, a.rows - row), a.width), between(in.rows, hidden_width);
      copy_rows(context, a.x + row * a.width, in, tiles.data());
      for_each_block(context, in, tiles.data(), gated, 2,
                     [&](const GemmBlock& block) { gate(block, a.gate_bias, a.up_bias, between, hidden.data()); });
      T* out = a.y + row * a.down.columns;
      for_each_block(context, between, hidden.data(), &a.down, 1,
                     [&](const GemmBlock& block) { round(block, a.down_bias, out, a.down.columns); });
    }
  }
};

const Register<GatedMLP<float>, GatedMLP<Half>, GatedMLP<BFloat16>> registered("GatedMLP");

}  // namespace
}  // namespace onnxfuse
