// Products of any sizes, dtypes and alignment, in float32 without tensor cores.
//
// A block owns 64 x 64 results, a thread 4 x 4 of them, 16 apart; slices of 16 of K pass through shared memory.
#pragma once

#include "gated_mlp/products.cuh"

namespace onnxfuse::mlp::cuda {

inline constexpr int kAnyTile = 64, kAnySlice = 16, kAnyThreads = 256;

template <bool kGated, class Product>
__global__ void __launch_bounds__(kAnyThreads) products_cuda_any_rows(Product p) {
  constexpr int kWeights = kGated ? 2 : 1, kEach = 4, kStep = kAnyTile / kEach;
  __shared__ float a[kAnySlice][kAnyTile + 1], b[kWeights][kAnySlice][kAnyTile];
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kAnyTile, column = static_cast<int64_t>(blockIdx.y) * kAnyTile;
  const Matrix<typename Product::W> matrices[2] = {p.weight, p.second};
  const int x = threadIdx.x % kStep, y = threadIdx.x / kStep;

  float sums[kWeights][kEach][kEach] = {};
  for (int64_t slice = 0; slice < p.depth; slice += kAnySlice) {
    for (int i = threadIdx.x; i < kAnyTile * kAnySlice; i += kAnyThreads) {
      const int64_t m = row + i / kAnySlice, k = slice + i % kAnySlice;
      a[i % kAnySlice][i / kAnySlice] = m < p.rows && k < p.depth ? widen(p.a[m * p.depth + k]) : 0.0f;
    }
#pragma unroll
    for (int w = 0; w < kWeights; ++w) {
      for (int i = threadIdx.x; i < kAnyTile * kAnySlice; i += kAnyThreads) {
        const int64_t k = slice + i / kAnyTile, n = column + i % kAnyTile;
        b[w][i / kAnyTile][i % kAnyTile] = k < p.depth && n < p.columns ? widen(*matrices[w].at(k, n)) : 0.0f;
      }
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kAnySlice; ++k) {
#pragma unroll
      for (int w = 0; w < kWeights; ++w) {
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
#pragma unroll
          for (int j = 0; j < kEach; ++j) sums[w][i][j] += a[k][y + i * kStep] * b[w][k][x + j * kStep];
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int64_t m = row + y + i * kStep, n = column + x + j * kStep;
      if (m >= p.rows || n >= p.columns) continue;
      p.out[m * p.columns + n] =
          narrow<typename Product::Out>(finish<kGated>(p, sums[0][i][j], sums[kWeights - 1][i][j], n));
    }
  }
}

}  // namespace onnxfuse::mlp::cuda
