#include "gated_mlp/gated_mlp.h"

#include "common/gemm.h"
#include "common/op.h"

#define ONNXFUSE_KERNELS "gated_mlp/gated_mlp_kernel.h"
#include "common/each_target.h"

namespace onnxfuse {
namespace {

// Rows whose hidden values, [rows, I] float32, are kept at a time: it bounds the scratch memory, and is large enough
// for reading the weights again for every such block to cost nothing beside the products.
constexpr int64_t kHiddenRows = 480;

Activation activation_named(const std::string& name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  fail("activation is '", name, "', expected silu, gelu or gelu_tanh");
}

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

// The bias [columns], null if the node lacks it.
template <typename T>
const T* bias_of(const Context& context, size_t index, const char* name, int64_t columns) {
  if (index >= context.input_count()) return nullptr;
  const auto bias = context.input<T>(index);
  if (!bias.present) return nullptr;
  require(bias.shape == Shape{columns}, name, " is ", bias.shape, ", expected [", columns, "]");
  return bias.data;
}

template <typename T>
class GatedMLP {
 public:
  static constexpr Port kInputs[] = {required<T>("x"),           required<T>("gate_weight"), required<T>("up_weight"),
                                     required<T>("down_weight"), optional<T>("gate_bias"),   optional<T>("up_bias"),
                                     optional<T>("down_bias")};
  static constexpr Port kOutputs[] = {required<T>("y")};

  static void infer(const ShapeInference& shapes) {
    auto y = shapes.input(0);
    const auto down = shapes.input(3);
    if (!y || !down) return;
    Dim columns = down->dims.back();
    if (down->dims.size() == 3) {
      columns = down->dims.front();
      columns = columns.known() ? Dim{columns.size * kPanel, ""} : Dim::unknown();
    }
    y->dims.back() = columns;
    shapes.output(0, y->dtype, y->dims);
  }

  explicit GatedMLP(const NodeInfo& node) : activation_(activation_named(node.text("activation"))) {}

  void compute(const Context& context) const {
    const auto x = context.input<T>(0);
    require(x.shape.rank() >= 1, "x is a scalar, expected at least one dimension");
    const int64_t width = x.shape[-1], rows = x.shape.count(0, x.shape.rank() - 1);
    const Weight gated[] = {weight_of(context.input(1), "gate_weight", width),
                            weight_of(context.input(2), "up_weight", width)};
    const int64_t hidden_width = gated[0].columns;
    require(gated[1].columns == hidden_width, "up_weight has ", gated[1].columns, " columns, gate_weight has ",
            hidden_width, ": expected equal numbers");
    const Weight down = weight_of(context.input(3), "down_weight", hidden_width);
    const T* gate_bias = bias_of<T>(context, 4, "gate_bias", hidden_width);
    const T* up_bias = bias_of<T>(context, 5, "up_bias", hidden_width);
    const T* down_bias = bias_of<T>(context, 6, "down_bias", down.columns);

    Shape shape = x.shape;
    shape[-1] = down.columns;
    const auto y = context.output<T>(0, shape);

    const auto gate = gate_kernel<T>(activation_);
    const auto round = ONNXFUSE_KERNEL(round_block<T>);
    const int64_t most = std::min(rows, kHiddenRows);
    const auto tiles = context.scratch<float>(TileLayout(most, width).floats());
    const auto hidden = context.scratch<float>(TileLayout(most, hidden_width).floats());
    for (int64_t row = 0; row < rows; row += kHiddenRows) {
      const TileLayout in(std::min(kHiddenRows, rows - row), width), between(in.rows, hidden_width);
      copy_rows(context, x.data + row * width, in, tiles.data());
      for_each_block(context, in, tiles.data(), gated, 2,
                     [&](const GemmBlock& block) { gate(block, gate_bias, up_bias, between, hidden.data()); });
      T* out = y.data + row * down.columns;
      for_each_block(context, between, hidden.data(), &down, 1,
                     [&](const GemmBlock& block) { round(block, down_bias, out, down.columns); });
    }
  }

 private:
  Activation activation_;
};

const Register<GatedMLP<float>, GatedMLP<Half>, GatedMLP<BFloat16>> registered("GatedMLP");

}  // namespace
}  // namespace onnxfuse
