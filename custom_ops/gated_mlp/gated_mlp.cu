#include "common/cublas.h"
#include "common/eight_rows.cuh"
#include "gated_mlp/elementwise.cuh"
#include "gated_mlp/gated_mlp.h"
#include "gated_mlp/hopper_products.h"
#include "gated_mlp/launch.cuh"
#include "gated_mlp/node.h"
#include "gated_mlp/one_row.cuh"
#include "rms_norm/entering_rows.cuh"

namespace onnxfuse {
namespace {

using cuda::blocks;
using cuda::divide_up;
using cuda::has_vectors;
using cuda::is_aligned;
using cuda::Matrix;
using mlp::cuda::Product;

constexpr const char* kName = "GatedMLP";
constexpr int64_t kFewRows = 8;  // of a kernel of our own, fewer where there is cuBLAS

template <typename T>
class GatedMLP : public GatedMLPNode<T> {
 public:
  explicit GatedMLP(const NodeInfo& node)
      : GatedMLPNode<T>(node),
        memory_(node),
        cublas_(cuda::Cublas::of_device()),
        constant_gates_(node.is_constant(1) && node.is_constant(2)),
        constant_down_(node.is_constant(3)),
        constant_norm_(node.is_constant(GatedMLPNode<T>::kNormWeight)) {}

  void compute(const Context& context) const {
    auto a = this->arguments(context);
    require(a.gate.dtype == kDTypeOf<T> && a.down.dtype == kDTypeOf<T>, "a weight is ",
            dtype_name(a.gate.dtype != kDTypeOf<T> ? a.gate.dtype : a.down.dtype), " and x is ",
            dtype_name(kDTypeOf<T>), ", expected equal dtypes on CUDA");
    if (a.rows == 0) return;
    const cuda::Stream stream(context);
    const bool weights_have_vectors = has_vectors<T>(a.gate) && has_vectors<T>(a.up) && has_vectors<T>(a.down);
    if (a.rows <= cuda::kEightRows && weights_have_vectors) {
      cuda::Row<T, T> row(a.x, a.width);
      row.enters(a.skip, a.sum, a.norm_weight, constant_norm_, this->epsilon_);
      if (a.rows == 1 && cuda::fits_one_row(a.width) && cuda::fits_one_row(a.gate.columns)) {
        return run_on_few_rows<float>(context, a, row, [&](const auto& in, const auto& columns, bool constant) {
          cuda::one_row<T>(stream, kName, in, columns, constant);
        });
      }
      if constexpr (sizeof(T) == 2) {
        const cuda::Row<T, T> between(nullptr, a.gate.columns);
        if (cuda::fits_eight_rows<2>(row) && cuda::fits_eight_rows<1>(between)) {
          return run_on_few_rows<T>(context, a, row, [&](const auto& in, const auto& columns, bool constant) {
            cuda::eight_rows(stream, kName, in, a.rows, columns, constant);
          });
        }
      }
    }
    const cuda::EnteringRows<T> h(context, stream, memory_, a.x, a.skip, a.sum, a.norm_weight, this->epsilon_, a.rows,
                                  a.width);
    a.x = h.get();
    const bool vectors = weights_have_vectors && is_aligned(a.x) && is_aligned(a.y) && a.width > 0 &&
                         a.width % mlp::cuda::kFewDepth == 0 && a.gate.columns > 0 &&
                         a.gate.columns % mlp::cuda::kFewDepth == 0;
    const bool plain = !a.gate.packed && !a.up.packed && !a.down.packed;
    if constexpr (sizeof(T) == 2) {
      if (vectors && plain && mlp::cuda::is_for_hopper(a.rows)) return run_on_hopper(context, stream, a);
    }
    const bool has_cublas = plain && cublas_ != nullptr;
    const int64_t few_rows_beside_cublas = sizeof(T) == 2 ? 1 : mlp::cuda::few_float32_rows(stream);
    const bool few = vectors && a.rows <= (has_cublas ? few_rows_beside_cublas : kFewRows);
    if (vectors && !few && has_cublas) return run_on_cublas(context, stream, a);
    if constexpr (sizeof(T) == 2) {
      if (vectors && !few) {
        const cuda::DeviceScratch hidden(context, memory_, a.rows * a.gate.columns * sizeof(T));
        return run(a, hidden.at<T>(0),
                   [&](auto gated, const auto& product) { mlp::cuda::many_rows<gated>(stream, kName, product); });
      }
    }
    const cuda::DeviceScratch hidden(context, memory_, a.rows * a.gate.columns * sizeof(float));
    run(a, hidden.at<float>(0), [&](auto gated, const auto& product) {
      if (few) {
        mlp::cuda::few_rows<gated>(stream, kName, product);
      } else {
        mlp::cuda::any_rows<gated>(stream, kName, product);
      }
    });
  }

 private:
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

  // Calls multiply(what enters, columns, whether the weights are constant) for both steps; between them is a Hidden.
  template <typename Hidden, typename Arguments, class Multiply>
  void run_on_few_rows(const Context& context, const Arguments& a, const cuda::Row<T, T>& row,
                       const Multiply& multiply) const {
    const int64_t bytes = a.rows * a.gate.columns * static_cast<int64_t>(sizeof(Hidden));
    const cuda::DeviceScratch hidden(context, memory_, bytes);
    const cuda::Row<T, Hidden> between(hidden.at<Hidden>(0), a.gate.columns);
    run(a, hidden.at<Hidden>(0), [&](auto gated, const auto& product) {
      const mlp::cuda::Columns<decltype(gated)::value, std::decay_t<decltype(product)>> columns(product);
      if constexpr (decltype(gated)::value) {
        multiply(row, columns, constant_gates_);
      } else {
        multiply(between, columns, constant_down_);
      }
    });
  }

  // Both projections and the activation in one kernel, and the last projection.
  template <typename Arguments>
  void run_on_hopper(const Context& context, const cuda::Stream& stream, const Arguments& a) const {
    using Product = mlp::cuda::PlainProduct<T>;
    const int64_t between = a.gate.columns;
    const cuda::DeviceScratch scratch(context, memory_,
                                      cuda::Cublas::kWorkspace + a.rows * between * static_cast<int64_t>(sizeof(T)));
    T* const hidden = scratch.at<T>(cuda::Cublas::kWorkspace);
    mlp::cuda::gate_on_hopper(stream, a.x, a.rows, a.width, Product{a.gate.data, a.gate_bias, hidden, between},
                              Product{a.up.data, a.up_bias, hidden, between}, this->activation_);
    if (cublas_ != nullptr) return project_on_cublas(stream, scratch.at<void>(0), a, hidden);
    const Product down{a.down.data, a.down_bias, a.y, a.down.columns};
    mlp::cuda::multiply_on_hopper(stream, hidden, a.rows, between, &down, 1);
  }

  // Both projections, the activation in a kernel of its own, and the last projection.
  template <typename Arguments>
  void run_on_cublas(const Context& context, const cuda::Stream& stream, const Arguments& a) const {
    namespace kernels = mlp::cuda;
    constexpr DType kDType = kDTypeOf<T>;
    const int64_t columns = a.gate.columns, hidden = a.rows * columns;
    const cuda::DeviceScratch scratch(context, memory_, cuda::Cublas::kWorkspace + 2 * hidden * sizeof(T));
    void* const workspace = scratch.at<void>(0);
    T* const gate = scratch.at<T>(cuda::Cublas::kWorkspace);
    T* const up = gate + hidden;
    cublas_->multiply(stream, workspace, kDType, a.x, a.gate.data, gate, a.rows, columns, a.width, 0);
    cublas_->multiply(stream, workspace, kDType, a.x, a.up.data, up, a.rows, columns, a.width, 0);
    const dim3 grid(blocks(a.rows), kernels::plane(divide_up(columns / cuda::kLanes<T>, kernels::kElementThreads)));
    stream.launch("GatedMLP's activation", kernels::gated_mlp_cuda_activate<T>, grid, kernels::kElementThreads, 0, gate,
                  up, a.gate_bias, a.up_bias, static_cast<int>(columns), this->activation_);
    project_on_cublas(stream, workspace, a, gate);
  }

  // The last projection.
  template <typename Arguments>
  void project_on_cublas(const cuda::Stream& stream, void* workspace, const Arguments& a, const T* hidden) const {
    const int64_t columns = a.down.columns;
    if (a.down_bias != nullptr) mlp::cuda::fill(stream, kName, a.y, a.down_bias, a.rows, columns);
    const float beta = a.down_bias != nullptr ? 1 : 0;
    cublas_->multiply(stream, workspace, kDTypeOf<T>, hidden, a.down.data, a.y, a.rows, columns, a.gate.columns, beta);
  }

  cuda::DeviceMemory memory_;
  const cuda::Cublas* cublas_;
  bool constant_gates_, constant_down_, constant_norm_;
};

const Register<GatedMLP<float>, GatedMLP<Half>, GatedMLP<BFloat16>> registered("GatedMLP", kCudaProvider);

}  // namespace
}  // namespace onnxfuse
