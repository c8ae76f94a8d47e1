// GatedMLP's products of few rows, see common/one_row.cuh and eight_rows.cuh: both projections side by side, then the
// last one.
#pragma once

#include "common/one_row.cuh"
#include "gated_mlp/products.cuh"

namespace onnxfuse::mlp::cuda {

template <bool kGated, class Product>
struct Columns {
  using W = typename Product::W;
  static constexpr int kMatrices = kGated ? 2 : 1, kLanes = onnxfuse::cuda::kLanes<W>;

  Product p;
  int vectors;

  explicit Columns(const Product& p) : p(p), vectors(static_cast<int>(p.columns / kLanes)) {}

  __device__ onnxfuse::cuda::Source<W> source(int vector, int matrix) const {
    return {matrix == 0 ? p.weight : p.second, static_cast<int64_t>(vector) * kLanes};
  }

  __device__ void finish(int row, int n, const float (&sums)[kMatrices]) const {
    p.out[row * p.columns + n] =
        narrow<typename Product::Out>(mlp::cuda::finish<kGated>(p, sums[0], sums[kMatrices - 1], n));
  }
};

}  // namespace onnxfuse::mlp::cuda
