#include "common/cublas.h"
#include "gated_mlp/any_rows.cuh"
#include "gated_mlp/elementwise.cuh"
#include "gated_mlp/few_rows.cuh"
#include "gated_mlp/gated_mlp.h"
#include "gated_mlp/many_rows.cuh"
#include "gated_mlp/node.h"

namespace onnxfuse {
namespace {

using cuda::blocks;
using cuda::divide_up;
using cuda::is_aligned;
using mlp::cuda::Matrix;
using mlp::cuda::Product;

constexpr int64_t kFewRows = 8;  // of a kernel of our own, beyond one row only where there is no cuBLAS

// A size of the second dimension of a grid.
unsigned plane(int64_t size) {
  require(size <= 0xffff, "a weight needs ", size, " blocks of columns, expected at most 65535 on CUDA");
  return static_cast<unsigned>(size);
}

template <typename T>
class GatedMLP : public GatedMLPNode<T> {
 public:
  explicit GatedMLP(const NodeInfo& node) : GatedMLPNode<T>(node), memory_(node), cublas_(cuda::Cublas::of_device()) {}

  void compute(const Context& context) const {
    const auto a = this->arguments(context);
    require(a.gate.dtype == kDTypeOf<T> && a.down.dtype == kDTypeOf<T>,
            "a weight is bfloat16 and x is float32, expected equal dtypes on CUDA");
    if (a.rows == 0) return;
    const bool vectors = is_aligned(a.x) && is_aligned(a.y) && has_vectors(a.gate) && has_vectors(a.up) &&
                         has_vectors(a.down) && a.width % mlp::cuda::kFewDepth == 0 &&
                         a.gate.columns % mlp::cuda::kFewDepth == 0;
    const bool plain = !a.gate.packed && !a.up.packed && !a.down.packed;
    const bool has_cublas = sizeof(T) == 2 && plain && cublas_ != nullptr;
    const bool few = vectors && a.rows <= (has_cublas ? 1 : kFewRows);
    const cuda::Stream stream(context);
    if constexpr (sizeof(T) == 2) {
      if (vectors && !few) {
        if (has_cublas) return run_on_cublas(context, stream, a);
        const cuda::DeviceScratch hidden(context, memory_, a.rows * a.gate.columns * sizeof(T));
        return run(a, hidden.at<T>(0), [&](auto gated, const auto& product) { many_rows<gated>(stream, product); });
      }
    }
    const cuda::DeviceScratch hidden(context, memory_, a.rows * a.gate.columns * sizeof(float));
    run(a, hidden.at<float>(0), [&](auto gated, const auto& product) {
      if (few) {
        few_rows<gated>(stream, product);
      } else {
        any_rows<gated>(stream, product);
      }
    });
  }

 private:
  // Whether rows can be read in vectors of 16 bytes.
  static bool has_vectors(const Weight& weight) {
    return is_aligned(weight.data) && weight.columns % cuda::kLanes<T> == 0;
  }

  // Calls multiply(whether there are two weights, product) for both steps.
  template <typename Arguments, typename Hidden, class Multiply>
  void run(const Arguments& a, Hidden* hidden, const Multiply& multiply) const {
    const int64_t between = a.gate.columns;
    multiply(std::true_type{}, Product<T, T, Hidden>{a.x, Matrix<T>(a.gate), Matrix<T>(a.up), a.gate_bias, a.up_bias,
                                                     hidden, a.rows, a.width, between, this->activation_});
    multiply(std::false_type{},
             Product<T, Hidden, T>{hidden, Matrix<T>(a.down), Matrix<T>(a.down), a.down_bias, nullptr, a.y, a.rows,
                                   between, a.down.columns, this->activation_});
  }

  // Both projections, the activation in a kernel of its own, and the last projection.
  template <typename Arguments>
  void run_on_cublas(const Context& context, const cuda::Stream& stream, const Arguments& a) const {
    namespace kernels = mlp::cuda;
    constexpr DType kDType = kDTypeOf<T>;
    const int64_t columns = a.gate.columns, out_columns = a.down.columns, hidden = a.rows * columns;
    const cuda::DeviceScratch scratch(context, memory_, cuda::Cublas::kWorkspace + 2 * hidden * sizeof(T));
    void* const workspace = scratch.at<void>(0);
    T* const gate = scratch.at<T>(cuda::Cublas::kWorkspace);
    T* const up = gate + hidden;
    cublas_->multiply(stream, workspace, kDType, a.x, a.gate.data, gate, a.rows, columns, a.width, 0);
    cublas_->multiply(stream, workspace, kDType, a.x, a.up.data, up, a.rows, columns, a.width, 0);
    const dim3 grid(blocks(a.rows), plane(divide_up(columns / cuda::kLanes<T>, kernels::kElementThreads)));
    stream.launch("GatedMLP's activation", kernels::gated_mlp_cuda_activate<T>, grid, kernels::kElementThreads, 0, gate,
                  up, a.gate_bias, a.up_bias, static_cast<int>(columns), this->activation_);
    if (a.down_bias != nullptr) {
      const int64_t count = a.rows * out_columns;
      stream.launch("GatedMLP's bias", kernels::gated_mlp_cuda_fill<T>,
                    blocks(divide_up(count, kernels::kElementThreads)), kernels::kElementThreads, 0, a.y, a.down_bias,
                    count, static_cast<int>(out_columns));
    }
    const float beta = a.down_bias != nullptr ? 1 : 0;
    cublas_->multiply(stream, workspace, kDType, gate, a.down.data, a.y, a.rows, out_columns, columns, beta);
  }

  template <bool kGated, typename A, typename Out>
  static void few_rows(const cuda::Stream& stream, const Product<T, A, Out>& p) {
    namespace kernels = mlp::cuda;
    const auto launch = [&](auto most) {
      constexpr int kRows = decltype(most)::value;
      stream.launch("GatedMLP", kernels::products_cuda_few_rows<T, A, Out, kRows, kGated>,
                    blocks(divide_up(p.columns, kernels::kFewColumns<kGated>)), kernels::kFewThreads<kRows, kGated>, 0,
                    p);
    };
    if (p.rows == 1) {
      launch(std::integral_constant<int, 1>{});
    } else if (p.rows <= 4) {
      launch(std::integral_constant<int, 4>{});
    } else {
      launch(std::integral_constant<int, 8>{});
    }
  }

  template <bool kGated, typename A, typename Out>
  static void any_rows(const cuda::Stream& stream, const Product<T, A, Out>& p) {
    namespace kernels = mlp::cuda;
    const dim3 grid(blocks(divide_up(p.rows, kernels::kAnyTile)), plane(divide_up(p.columns, kernels::kAnyTile)));
    const auto kernel = kernels::products_cuda_any_rows<T, A, Out, kGated>;
    stream.launch("GatedMLP", kernel, grid, kernels::kAnyThreads, 0, p);
  }

  template <bool kGated>
  static void many_rows(const cuda::Stream& stream, const Product<T, T, T>& p) {
    namespace kernels = mlp::cuda;
    const int64_t columns = kGated ? kernels::kManyColumns / 2 : kernels::kManyColumns;
    const dim3 grid(blocks(divide_up(p.rows, kernels::kManyRows)), plane(divide_up(p.columns, columns)));
    const auto kernel = kernels::products_cuda_many_rows<T, kGated>;
    stream.launch("GatedMLP", kernel, grid, kernels::kManyThreads, kernels::kManyBytes, p);
  }

  cuda::DeviceMemory memory_;
  const cuda::Cublas* cublas_;
};

const Register<GatedMLP<float>, GatedMLP<Half>, GatedMLP<BFloat16>> registered("GatedMLP", kCudaProvider);

}  // namespace
}  // namespace onnxfuse
