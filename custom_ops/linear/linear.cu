#include <algorithm>

#include "common/cublas.h"
#include "common/eight_rows.cuh"
#include "gated_mlp/elementwise.cuh"
#include "gated_mlp/hopper_products.h"
#include "gated_mlp/launch.cuh"
#include "linear/linear.h"
#include "linear/node.h"
#include "linear/one_row.cuh"
#include "rms_norm/entering_rows.cuh"

namespace onnxfuse {
namespace {

using cuda::divide_up;
using cuda::has_vectors;
using cuda::is_aligned;
using cuda::Matrix;

constexpr const char* kName = "Linear";
constexpr int64_t kFewRows = 8;  // of a kernel of our own

template <typename T>
class Linear : public LinearNode<T> {
 public:
  explicit Linear(const NodeInfo& node) : LinearNode<T>(node), memory_(node), cublas_(cuda::Cublas::of_device()) {
    for (int i = 0; i < kMostProducts; ++i) constant_[i] = node.is_constant(this->weight_index(i));
    constant_norm_ = node.is_constant(LinearNode<T>::kNormWeight);
  }

  void compute(const Context& context) const {
    const auto a = this->arguments(context);
    for (int i = 0; i < a.count; ++i)
      require(a.products[i].weight.scales == nullptr, "a weight is int8, expected another dtype on CUDA");
    if (a.rows == 0) return;
    const cuda::Stream stream(context);
    if (a.rows <= cuda::kEightRows && can_share_a_launch(a)) {
      cuda::Row<T, T> row(a.x, a.depth);
      row.enters(a.skip, a.sum, a.norm_weight, constant_norm_, this->epsilon_);
      if (a.rows == 1 && cuda::fits_one_row(a.depth)) {
        return with_weights_of(a.products[0].weight, [&](auto w) {
          cuda::one_row<decltype(w)>(stream, kName, row, all_columns<decltype(w)>(a), has_constants(a));
        });
      }
      if constexpr (sizeof(T) == 2) {
        if (cuda::fits_eight_rows<1>(row)) {
          return cuda::eight_rows(stream, kName, row, a.rows, all_columns<T>(a), has_constants(a));
        }
      }
    }
    const cuda::EnteringRows<T> h(context, stream, memory_, a.x, a.skip, a.sum, a.norm_weight, this->epsilon_, a.rows,
                                  a.depth);
    if constexpr (sizeof(T) == 2) {
      // A single product is left to cuBLAS, which is about as quick.
      const bool own = a.count > 1 || cublas_ == nullptr;
      if (own && mlp::cuda::is_for_hopper(a.rows) && is_plain(a, h.get())) {
        return multiply_on_hopper(stream, a, h.get());
      }
    }
    for (int i = 0; i < a.count; ++i) multiply(context, stream, h.get(), a.rows, a.depth, a.products[i]);
  }

 private:
  using Arguments = typename LinearNode<T>::Arguments;
  using Product = typename LinearNode<T>::Product;

  // Calls body(a number of the dtype of the weight).
  template <class Body>
  static void with_weights_of(const Weight& weight, const Body& body) {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (weight.dtype == DType::kBFloat16) return body(BFloat16{});
    }
    body(T{});
  }

  static bool can_share_a_launch(const Arguments& a) {
    const DType dtype = a.products[0].weight.dtype;
    for (int i = 0; i < a.count; ++i) {
      const Weight& weight = a.products[i].weight;
      const bool vectors = dtype == DType::kFloat32 ? has_vectors<float>(weight) : has_vectors<BFloat16>(weight);
      if (weight.dtype != dtype || weight.columns == 0 || !vectors) return false;
    }
    return true;
  }

  bool has_constants(const Arguments& a) const {
    return std::all_of(constant_, constant_ + a.count, [](bool constant) { return constant; });
  }

  template <typename W>
  static linear::cuda::Columns<T, W> all_columns(const Arguments& a) {
    linear::cuda::Columns<T, W> columns{};
    int count = 0;
    for (int i = 0; i < kMostProducts; ++i) {
      const Product& product = a.products[std::min(i, a.count - 1)];
      const int own = static_cast<int>(product.weight.columns);
      columns.products[i] = {Matrix<W>(product.weight), product.bias, product.y, count, own};
      if (i < a.count) count += own;
    }
    columns.vectors = count / cuda::kLanes<W>;
    return columns;
  }

  // Whether all products are of matrices by rows, in vectors of 16 bytes.
  static bool is_plain(const Arguments& a, const T* h) {
    for (int i = 0; i < a.count; ++i) {
      const Product& product = a.products[i];
      if (product.weight.packed || !has_vectors<T>(product.weight) || !is_aligned(product.y)) return false;
    }
    return is_aligned(h) && a.depth % 8 == 0 && a.depth > 0;
  }

  static void multiply_on_hopper(const cuda::Stream& stream, const Arguments& a, const T* h) {
    mlp::cuda::PlainProduct<T> products[kMostProducts];
    for (int i = 0; i < a.count; ++i) {
      const Product& product = a.products[i];
      products[i] = {product.weight.data, product.bias, product.y, product.weight.columns};
    }
    mlp::cuda::multiply_on_hopper(stream, h, a.rows, a.depth, products, a.count);
  }

  // One product of rows that are ready.
  void multiply(const Context& context, const cuda::Stream& stream, const T* h, int64_t rows, int64_t depth,
                const Product& product) const {
    const Weight& weight = product.weight;
    if (weight.columns == 0) return;
    const bool vectors =
        has_vectors<T>(weight) && is_aligned(h) && is_aligned(product.y) && depth % 8 == 0 && depth > 0;
    const bool has_cublas = cublas_ != nullptr && !weight.packed && weight.dtype == kDTypeOf<T> && depth > 0;
    const int64_t few = sizeof(T) == 2 ? 0 : mlp::cuda::few_float32_rows(stream);
    if (has_cublas && !(vectors && rows <= few)) {
      return multiply_on_cublas(context, stream, h, rows, depth, product);
    }
    if constexpr (sizeof(T) == 2) {
      if (vectors && rows > kFewRows) {
        return mlp::cuda::many_rows<false>(stream, kName, product_of<T>(h, rows, depth, product));
      }
    }
    with_weights_of(weight, [&](auto w) {
      using W = decltype(w);
      const auto p = product_of<W>(h, rows, depth, product);
      if (rows <= kFewRows && has_vectors<W>(weight) && is_aligned(h) && depth % mlp::cuda::kFewDepth == 0) {
        mlp::cuda::few_rows<false>(stream, kName, p);
      } else {
        mlp::cuda::any_rows<false>(stream, kName, p);
      }
    });
  }

  template <typename W>
  static mlp::cuda::Product<T, T, T, W> product_of(const T* h, int64_t rows, int64_t depth, const Product& product) {
    const Matrix<W> matrix(product.weight);
    return {h, matrix, matrix, product.bias, nullptr, product.y, rows, depth, product.weight.columns, {}};
  }

  void multiply_on_cublas(const Context& context, const cuda::Stream& stream, const T* h, int64_t rows, int64_t depth,
                          const Product& product) const {
    const cuda::DeviceScratch workspace(context, memory_, cuda::Cublas::kWorkspace);
    const int64_t columns = product.weight.columns;
    if (product.bias != nullptr) mlp::cuda::fill(stream, kName, product.y, product.bias, rows, columns);
    cublas_->multiply(stream, workspace.at<void>(0), kDTypeOf<T>, h, product.weight.data, product.y, rows, columns,
                      depth, product.bias != nullptr ? 1 : 0);
  }

  cuda::DeviceMemory memory_;
  const cuda::Cublas* cublas_;
  bool constant_[kMostProducts];  // the weights
  bool constant_norm_;
};

// The names say what a node of a block has before its projections: see onnxfuse/blocks.py.
using Kernels = Register<Linear<float>, Linear<Half>, Linear<BFloat16>>;
const Kernels plain("Linear", kCudaProvider), with_norm("NormLinear", kCudaProvider),
    with_skip_and_norm("SkipNormLinear", kCudaProvider);

}  // namespace
}  // namespace onnxfuse
