// What the kernels of GatedMLP share: operands, and what is done with the sums.
#pragma once

#include "common/matrix.cuh"
#include "gated_mlp/gated_mlp.h"

namespace onnxfuse::mlp::cuda {

using onnxfuse::cuda::divide_up;
using onnxfuse::cuda::kWarp;
using onnxfuse::cuda::Matrix;
using onnxfuse::cuda::narrow;
using onnxfuse::cuda::widen;

// out = A W + bias, or act(A W + bias) * (A V + second_bias) where there is a second weight; [M, N].
// A: [M, K] A_, out: Out; either may be float32 where T is not. The weights are of dtype T, or bfloat16 where T is
// float32.
template <typename T_, typename A_, typename Out_, typename W_ = T_>
struct Product {
  using T = T_;
  using A = A_;
  using Out = Out_;
  using W = W_;

  const A* a;
  Matrix<W> weight, second;
  const T *bias, *second_bias;
  Out* out;
  int64_t rows, depth, columns;  // M, K, N
  Activation activation;
};

__device__ inline float activate(Activation activation, float x) {
  if (activation == Activation::kSilu) return onnxfuse::cuda::silu(x);
  if (activation == Activation::kGelu) return 0.5f * x * (1.0f + erff(x * 0.707106781f));
  return 0.5f * x * (1.0f + tanhf(0.797884561f * (x + 0.044715f * x * x * x)));
}

// The result at column n from the sums of the first and, if kGated, the second weight.
template <bool kGated, typename Operands>
__device__ inline float finish(const Operands& p, float sum, float second, int64_t n) {
  if (p.bias != nullptr) sum += widen(p.bias[n]);
  if constexpr (!kGated) return sum;
  if (p.second_bias != nullptr) second += widen(p.second_bias[n]);
  return activate(p.activation, sum) * second;
}

}  // namespace onnxfuse::mlp::cuda
