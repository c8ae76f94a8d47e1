#include "linear/linear.h"

#include "common/gemm.h"
#include "common/op.h"
#include "linear/node.h"

#define ONNXFUSE_KERNELS "linear/linear_kernel.h"
#include "common/each_target.h"
#include "rms_norm/entering_rows.h"

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
    const EnteringRows<T> entering(context, a.x, a.skip, a.sum, a.norm_weight, this->epsilon_, a.depth, most);
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t first = a.rows * pass / passes, rows = a.rows * (pass + 1) / passes - first;
      const T* h = entering.block(first, rows);
      for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8})
        multiply_by(context, a, dtype, h, first, rows);
    }
  }

 private:
  using Arguments = typename LinearNode<T>::Arguments;

  // The products of h by the weights of one dtype, which decides on the tiles.
  void multiply_by(const Context& context, const Arguments& a, DType dtype, const T* h, int64_t first,
                   int64_t rows) const {
    Projection<T> products[kMostProducts];
    int count = 0;
    for (int i = 0; i < a.count; ++i) {
      if (a.products[i].weight.dtype != dtype) continue;
      products[count] = a.products[i];
      products[count++].y += first * a.products[i].weight.columns;
    }
    if (count == 0) return;
    const TileLayout layout(rows, a.depth, kDTypeOf<T>, dtype);
    const auto tiles = context.scratch<char>(layout.bytes());
    cut_into_tiles(context, h, layout, tiles.data());
    multiply_each(context, layout, tiles.data(), products, count, ONNXFUSE_KERNEL(round_block<T>));
  }
};

// The names say what a node of a block has before its projections: see onnxfuse/blocks.py.
using Kernels = Register<Linear<float>, Linear<Half>, Linear<BFloat16>>;
const Kernels plain("Linear"), with_norm("NormLinear"), with_skip_and_norm("SkipNormLinear");

}  // namespace
}  // namespace onnxfuse
