// SwiGLU on raw pointers, see swiglu.h. A thread owns one vector of elements; 3 * sizeof(T) bytes of memory traffic
// each.
#pragma once

#include "common/device.cuh"

namespace onnxfuse::cuda {

inline constexpr unsigned kSwigluThreads = 256;

template <typename T, int kLanes>
__global__ void __launch_bounds__(kSwigluThreads) swiglu_cuda(const T* gate, const T* up, T* y, int64_t count) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kLanes;
  if (i >= count) return;
  float g[kLanes], u[kLanes];
  load<kLanes>(gate + i, g);
  load<kLanes>(up + i, u);
#pragma unroll
  for (int j = 0; j < kLanes; ++j) g[j] = silu(g[j]) * u[j];
  store<kLanes>(y + i, g);
}

template <typename T>
void swiglu(const Stream& stream, const T* gate, const T* up, T* y, int64_t count) {
  const bool vectors = count % kLanes<T> == 0 && is_aligned(gate) && is_aligned(up) && is_aligned(y);
  const int64_t a_block = kSwigluThreads * (vectors ? kLanes<T> : 1);
  stream.launch("SwiGLU", vectors ? swiglu_cuda<T, kLanes<T>> : swiglu_cuda<T, 1>, blocks(divide_up(count, a_block)),
                kSwigluThreads, 0, gate, up, y, count);
}

}  // namespace onnxfuse::cuda
