// What is left of GatedMLP when cuBLAS does the products. A thread owns one 16-byte vector.
#pragma once

#include "gated_mlp/products.cuh"

namespace onnxfuse::mlp::cuda {

inline constexpr unsigned kElementThreads = 256;

// gate = act(gate + gate_bias) * (up + up_bias) for gate and up: [M, I]; I is a multiple of the vector. blockIdx.x:
// row.
template <typename T>
__global__ void __launch_bounds__(kElementThreads)
    gated_mlp_cuda_activate(T* gate, const T* up, const T* gate_bias, const T* up_bias, int columns,
                            Activation activation) {
  constexpr int kN = onnxfuse::cuda::kLanes<T>;
  const int n = static_cast<int>(blockIdx.y * kElementThreads + threadIdx.x) * kN;
  if (n >= columns) return;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * columns + n;
  float g[kN], u[kN];
  onnxfuse::cuda::load<kN>(gate + at, g);
  onnxfuse::cuda::load<kN>(up + at, u);
#pragma unroll
  for (int j = 0; j < kN; ++j) {
    if (gate_bias != nullptr) g[j] += widen(gate_bias[n + j]);
    if (up_bias != nullptr) u[j] += widen(up_bias[n + j]);
    g[j] = activate(activation, g[j]) * u[j];
  }
  onnxfuse::cuda::store<kN>(gate + at, g);
}

// Every row of y: [M, columns] becomes `row`.
template <typename T>
__global__ void __launch_bounds__(kElementThreads) gated_mlp_cuda_fill(T* y, const T* row, int64_t count, int columns) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kElementThreads + threadIdx.x;
  if (i < count) y[i] = row[i % columns];
}

template <typename T>
void fill(const onnxfuse::cuda::Stream& stream, const char* name, T* y, const T* row, int64_t rows, int64_t columns) {
  const int64_t count = rows * columns;
  stream.launch(name, gated_mlp_cuda_fill<T>, onnxfuse::cuda::blocks(divide_up(count, kElementThreads)),
                kElementThreads, 0, y, row, count, static_cast<int>(columns));
}

}  // namespace onnxfuse::mlp::cuda
