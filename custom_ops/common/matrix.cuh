// Weights of matrix products as the kernels see them.
#pragma once

#include "common/device.cuh"
#include "common/gemm.h"

namespace onnxfuse::cuda {

// W: [K, N] in either layout: element (k, n) is at n / 32 * panel + k * row + n % 32.
template <typename T>
struct Matrix {
  const T* data;
  int64_t row, panel;

  Matrix() = default;
  explicit Matrix(const Weight& weight)
      : data(static_cast<const T*>(weight.data)),
        row(weight.packed ? kPanel : weight.columns),
        panel(weight.packed ? weight.depth * kPanel : kPanel) {}

  __device__ const T* at(int64_t k, int64_t n) const { return data + n / kPanel * panel + k * row + n % kPanel; }
};

// Whether the rows of a weight of T can be read in vectors of 16 bytes.
template <typename T>
bool has_vectors(const Weight& weight) {
  return is_aligned(weight.data) && weight.columns % kLanes<T> == 0;
}

}  // namespace onnxfuse::cuda
