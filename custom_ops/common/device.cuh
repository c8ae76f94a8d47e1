// What the CUDA kernels share: element types on the device, 16-byte vectors, sums over warps and blocks.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/cuda.h"
#include "common/dtype.h"

namespace onnxfuse::cuda {

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(Half x) { return __half2float(__ushort_as_half(x.bits)); }
__device__ inline float widen(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

// Rounds to the nearest, ties to even.
template <typename T>
__device__ T narrow(float x);
template <>
__device__ inline float narrow<float>(float x) {
  return x;
}
template <>
__device__ inline Half narrow<Half>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}
template <>
__device__ inline BFloat16 narrow<BFloat16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}

// N neighbouring elements, moved at once; N * sizeof(T) <= 16.
template <typename T, int N>
struct alignas(sizeof(T) * N) Vector {
  T lane[N];
};

template <typename T>
inline constexpr int kLanes = 16 / sizeof(T);  // of a 16-byte vector

// N elements as floats. Tables and weights may have another dtype than the data, and come in several vectors.
template <int N, typename T>
__device__ inline void load(const T* p, float (&values)[N]) {
  constexpr int kStep = N < kLanes<T> ? N : kLanes<T>;
#pragma unroll
  for (int i = 0; i < N; i += kStep) {
    const auto vector = *reinterpret_cast<const Vector<T, kStep>*>(p + i);
#pragma unroll
    for (int j = 0; j < kStep; ++j) values[i + j] = widen(vector.lane[j]);
  }
}

template <int N, typename T>
__device__ inline void store(T* p, const float (&values)[N]) {
  constexpr int kStep = N < kLanes<T> ? N : kLanes<T>;
#pragma unroll
  for (int i = 0; i < N; i += kStep) {
    Vector<T, kStep> vector;
#pragma unroll
    for (int j = 0; j < kStep; ++j) vector.lane[j] = narrow<T>(values[i + j]);
    *reinterpret_cast<Vector<T, kStep>*>(p + i) = vector;
  }
}

// The sum over the lanes of a warp, in every lane.
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
  return x;
}

// The sum over the threads of a block, in every thread. All threads of the block take part.
__device__ inline float block_sum(float x) {
  __shared__ float sums[kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  x = warp_sum(x);
  if (warps == 1) return x;
  __syncthreads();  // the sums of the call before have been read
  if (lane == 0) sums[warp] = x;
  __syncthreads();
  return warp_sum(lane < warps ? sums[lane] : 0.0f);
}

__device__ inline float silu(float x) { return x / (1.0f + expf(-x)); }

}  // namespace onnxfuse::cuda
