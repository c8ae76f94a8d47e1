// Linear's products of few rows, see common/one_row.cuh and eight_rows.cuh: up to three weights one after the other.
#pragma once

#include "common/one_row.cuh"
#include "linear/linear.h"

namespace onnxfuse::linear::cuda {

template <typename T, typename W>
struct Columns {
  static constexpr int kMatrices = 1, kLanes = onnxfuse::cuda::kLanes<W>;

  struct Product {
    onnxfuse::cuda::Matrix<W> matrix;
    const T* bias;  // or null
    T* y;
    int first;    // of its columns among all
    int columns;  // of y
  };

  Product products[kMostProducts];  // those that are not needed start beyond the last column
  int vectors;

  __device__ const Product& product_of(int n) const {
    return products[n >= products[2].first ? 2 : n >= products[1].first ? 1 : 0];
  }

  __device__ onnxfuse::cuda::Source<W> source(int vector, int) const {
    const Product& product = product_of(vector * kLanes);
    return {product.matrix, vector * kLanes - product.first};
  }

  __device__ void finish(int row, int n, const float (&sums)[1]) const {
    const Product& product = product_of(n);
    const int at = n - product.first;
    const float bias = product.bias != nullptr ? onnxfuse::cuda::widen(product.bias[at]) : 0.0f;
    product.y[static_cast<int64_t>(row) * product.columns + at] = onnxfuse::cuda::narrow<T>(sums[0] + bias);
  }
};

}  // namespace onnxfuse::linear::cuda
