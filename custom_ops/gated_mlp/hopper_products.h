// The launches of hopper_products.cuh, which is compiled apart: it takes long.
#pragma once

#include "common/cuda.h"
#include "gated_mlp/gated_mlp.h"

namespace onnxfuse::mlp::cuda {

inline constexpr int kMostWeights = 3;

// y = A W + bias for W: [depth, columns], by rows; y: [rows, columns].
template <typename T>
struct PlainProduct {
  const void* weight;
  const T* bias;  // null for none
  T* y;
  int64_t columns;
};

// Whether products of so many rows are for the kernels below: there is code for the current device, and next to no
// cluster has a block without rows.
bool is_for_hopper(int64_t rows);

// A: [rows, depth]. All addresses are multiples of 16 bytes, depth and columns of 8. There are up to kMostWeights
// products; those of a gated pair have the same columns, and y of the first receives act(first) * second.
void multiply_on_hopper(const onnxfuse::cuda::Stream& stream, const Half* a, int64_t rows, int64_t depth,
                        const PlainProduct<Half>* products, int count);
void multiply_on_hopper(const onnxfuse::cuda::Stream& stream, const BFloat16* a, int64_t rows, int64_t depth,
                        const PlainProduct<BFloat16>* products, int count);
void gate_on_hopper(const onnxfuse::cuda::Stream& stream, const Half* a, int64_t rows, int64_t depth,
                    const PlainProduct<Half>& gate, const PlainProduct<Half>& up, Activation activation);
void gate_on_hopper(const onnxfuse::cuda::Stream& stream, const BFloat16* a, int64_t rows, int64_t depth,
                    const PlainProduct<BFloat16>& gate, const PlainProduct<BFloat16>& up, Activation activation);

}  // namespace onnxfuse::mlp::cuda
