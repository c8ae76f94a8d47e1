#include "gated_mlp/gated_mlp.h"

#include "common/gemm.h"
#include "common/op.h"
#include "gated_mlp/node.h"

#define ONNXFUSE_KERNELS "gated_mlp/gated_mlp_kernel.h"
#include "common/each_target.h"
#include "rms_norm/entering_rows.h"

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
    const int64_t passes = (a.rows + kHiddenRows - 1) / kHiddenRows, most = (a.rows + passes - 1) / passes;
    const auto in_layout = [&](int64_t rows) { return TileLayout(rows, a.width, kDTypeOf<T>, a.gate.dtype); };
    const auto hidden_layout = [&](int64_t rows) {
      return TileLayout(rows, hidden_width, DType::kFloat32, a.down.dtype);
    };
    const auto tiles = context.scratch<char>(in_layout(most).bytes());
    const auto hidden = context.scratch<char>(hidden_layout(most).bytes());
    const EnteringRows<T> h(context, a.x, a.skip, a.sum, a.norm_weight, this->epsilon_, a.width, most);
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t first = a.rows * pass / passes, count = a.rows * (pass + 1) / passes - first;
      const TileLayout in = in_layout(count), between = hidden_layout(count);
      cut_into_tiles(context, h.block(first, count), in, tiles.data());
      for_each_block(context, in, tiles.data(), gated, 2, [&](const GemmBlock& block) {
        gate(block, a.gate_bias, a.up_bias, hidden_width);
        write_tiles(between, block.source(0), hidden.data());
      });
      const Projection<T> down{a.down, a.down_bias, a.y + first * a.down.columns};
      multiply_each(context, between, hidden.data(), &down, 1, ONNXFUSE_KERNEL(round_block<T>));
    }
  }
};

const Register<GatedMLP<float>, GatedMLP<Half>, GatedMLP<BFloat16>> registered("GatedMLP");

}  // namespace
}  // namespace onnxfuse
