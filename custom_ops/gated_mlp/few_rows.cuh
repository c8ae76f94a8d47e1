// Products for up to kRows rows of A, bound by reading the weights.
//
// A block owns kFewColumns columns, a panel of the packed layout or half of one, and all of K. A thread owns the
// columns of one 16-byte vector and every so many'th run of kDeep rows of the weights, which it loads before it uses
// the first. The sums of a column are added up in the warp by shuffles, then through shared memory. Memory traffic: the
// weights once. K is a multiple of 8.
#pragma once

#include "gated_mlp/products.cuh"

namespace onnxfuse::mlp::cuda {

inline constexpr int kFewDepth = 8;  // K is a multiple of it

// One weight has fewer columns than two: narrower blocks make up for it.
template <bool kGated>
inline constexpr int kFewColumns = kGated ? 32 : 16;
// More threads, except where many rows need more registers than they can have then.
template <int kRows, bool kGated>
inline constexpr int kFewThreads = kRows < 8 && !kGated ? 512 : 256;

template <int kRows, bool kGated, class Product>
__global__ void __launch_bounds__(kFewThreads<kRows, kGated>) products_cuda_few_rows(Product p) {
  using W = typename Product::W;
  using A = typename Product::A;
  constexpr int kWeights = kGated ? 2 : 1, kDeep = kFewDepth / kWeights, kThreads = kFewThreads<kRows, kGated>;
  constexpr int kN = onnxfuse::cuda::kLanes<W>, kColumns = kFewColumns<kGated>, kColumnLanes = kColumns / kN,
                kRowLanes = kThreads / kColumnLanes;
  constexpr int kWarps = kThreads / kWarp;
  using Vector = onnxfuse::cuda::Vector<W, kN>;
  __shared__ float partial[kWarps][kWeights][kRows][kColumns];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int column = threadIdx.x % kColumnLanes * kN, row_lane = threadIdx.x / kColumnLanes;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kColumns + column;
  const int depth = static_cast<int>(p.depth), rows = static_cast<int>(p.rows);

  float sums[kWeights][kRows][kN] = {};
  if (n < p.columns) {
    const Matrix<W> matrices[2] = {p.weight, p.second};
    const int first = row_lane * kDeep;
    const W* from[kWeights];
    int64_t row[kWeights];
#pragma unroll
    for (int w = 0; w < kWeights; ++w) {
      from[w] = matrices[w].at(first, n);
      row[w] = matrices[w].row;
    }
    const A* a = p.a + first;
    for (int k = first; k < depth; k += kRowLanes * kDeep, a += kRowLanes * kDeep) {
      Vector weights[kWeights][kDeep];
#pragma unroll
      for (int w = 0; w < kWeights; ++w) {
#pragma unroll
        for (int u = 0; u < kDeep; ++u) weights[w][u] = *reinterpret_cast<const Vector*>(from[w] + u * row[w]);
        from[w] += kRowLanes * kDeep * row[w];
      }
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        if (m >= rows) break;
        float factors[kDeep];
        onnxfuse::cuda::load<kDeep>(a + static_cast<int64_t>(m) * depth, factors);
#pragma unroll
        for (int w = 0; w < kWeights; ++w) {
#pragma unroll
          for (int u = 0; u < kDeep; ++u) {
#pragma unroll
            for (int j = 0; j < kN; ++j) sums[w][m][j] += factors[u] * widen(weights[w][u].lane[j]);
          }
        }
      }
    }
  }
#pragma unroll
  for (int w = 0; w < kWeights; ++w) {
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        float sum = sums[w][m][j];
#pragma unroll
        for (int step = kColumnLanes; step < kWarp; step *= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
        if (lane < kColumnLanes) partial[warp][w][m][column + j] = sum;
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kRows * kColumns; i += kThreads) {
    const int m = i / kColumns, c = i % kColumns;
    const int64_t at = static_cast<int64_t>(blockIdx.x) * kColumns + c;
    if (m >= rows || at >= p.columns) continue;
    float sum[2] = {0, 0};
#pragma unroll
    for (int w = 0; w < kWeights; ++w) {
#pragma unroll
      for (int k = 0; k < kWarps; ++k) sum[w] += partial[k][w][m][c];
    }
    p.out[m * p.columns + at] = narrow<typename Product::Out>(finish<kGated>(p, sum[0], sum[1], at));
  }
}

}  // namespace onnxfuse::mlp::cuda
