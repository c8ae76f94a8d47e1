// Launches of the kernels that multiply: of GatedMLP, where kGated tells the two weights of the first step from the one
// of the second, and of Linear, which has one.
#pragma once

#include "gated_mlp/any_rows.cuh"
#include "gated_mlp/few_rows.cuh"
#include "gated_mlp/many_rows.cuh"

namespace onnxfuse::mlp::cuda {

using onnxfuse::cuda::blocks;
using onnxfuse::cuda::Stream;

// A size of the second dimension of a grid.
inline unsigned plane(int64_t size) {
  require(size <= 0xffff, "a weight needs ", size, " blocks of columns, expected at most 65535 on CUDA");
  return static_cast<unsigned>(size);
}

// Up to eight rows of whole vectors.
template <bool kGated, class Product>
void few_rows(const Stream& stream, const char* name, const Product& p) {
  const auto launch = [&](auto most) {
    constexpr int kRows = decltype(most)::value;
    stream.launch(name, products_cuda_few_rows<kRows, kGated, Product>,
                  blocks(divide_up(p.columns, kFewColumns<kGated>)), kFewThreads<kRows, kGated>, 0, p);
  };
  if (p.rows <= 4) {
    launch(std::integral_constant<int, 4>{});
  } else {
    launch(std::integral_constant<int, 8>{});
  }
}

// Up to how many rows of float32 that is at least as quick as cuBLAS.
inline int64_t few_float32_rows(const Stream& stream) { return stream.allows_tf32() ? 2 : 8; }

template <bool kGated, class Product>
void any_rows(const Stream& stream, const char* name, const Product& p) {
  const dim3 grid(blocks(divide_up(p.rows, kAnyTile)), plane(divide_up(p.columns, kAnyTile)));
  stream.launch(name, products_cuda_any_rows<kGated, Product>, grid, kAnyThreads, 0, p);
}

// Whole vectors of 16-bit numbers.
template <bool kGated, typename T>
void many_rows(const Stream& stream, const char* name, const Product<T, T, T>& p) {
  const int64_t columns = kGated ? kManyColumns / 2 : kManyColumns;
  const dim3 grid(blocks(divide_up(p.rows, kManyRows)), plane(divide_up(p.columns, columns)));
  stream.launch(name, products_cuda_many_rows<T, kGated>, grid, kManyThreads, kManyBytes, p);
}

}  // namespace onnxfuse::mlp::cuda
