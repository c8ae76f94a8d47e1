// What goes with the products: the length of the cache, adding up the parts of a row, and writing the cache.
#pragma once

#include "attention/past_search.cuh"
#include "common/early_start.cuh"

namespace onnxfuse::attention::cuda {

inline constexpr int kMostParts = 128;  // four of each lane of a warp
inline constexpr unsigned kCombineThreads = 128, kCopyThreads = 256, kPastThreads = 1024;

// A block owns a row of y. Reads 4 (2 + Dv) bytes a part; the factors of the parts are in shared memory.
template <typename T>
__global__ void __launch_bounds__(kCombineThreads) attention_cuda_combine(Arguments<T> a) {
  __shared__ float factors[kMostParts];
  onnxfuse::cuda::let_next_start();
  onnxfuse::cuda::wait_for_previous();
  const Problem<T>& p = a.problem;
  const int64_t group = p.heads / p.kv_heads, rows = p.queries * group;
  const int64_t row = blockIdx.x % rows, head = blockIdx.x / rows % p.kv_heads, b = blockIdx.x / rows / p.kv_heads;
  const int count = a.parts.count, lane = threadIdx.x % kWarp;
  // Every warp finds the total, to wait for no other; each lane looks at up to kOwn parts at once.
  constexpr int kOwn = 4;
  float top = -INFINITY, total = 0, tops[kOwn], totals[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int part = lane + i * kWarp;
    const float* from = a.parts.of(blockIdx.x, min(part, count - 1));
    tops[i] = part < count ? from[0] : -INFINITY;
    totals[i] = part < count ? from[1] : 0.0f;
    top = fmaxf(top, tops[i]);
  }
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffff, top, step));
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const float factor = decay(tops[i], top);
    total += totals[i] * factor;
    if (threadIdx.x < kWarp && lane + i * kWarp < count) factors[lane + i * kWarp] = factor;
  }
  total = onnxfuse::cuda::warp_sum(total);
  __syncthreads();
  T* out = row_of(p.y, b, head * group + row % group, row / group);
  for (int64_t c = threadIdx.x; c < p.value.size; c += kCombineThreads) {
    float sum = 0;
#pragma unroll 8
    for (int part = 0; part < count; ++part) sum += a.parts.of(blockIdx.x, part)[2 + c] * factors[part];
    out[c] = narrow<T>(total == 0 ? 0.0f : sum / total);
  }
}

// Writes present: all rows, or only the new ones where the past is there already. blockIdx.z: keys or values. Unit:
// what a thread moves at once.
template <typename T, typename Unit>
__global__ void __launch_bounds__(kCopyThreads) attention_cuda_copy(Arguments<T> a) {
  const Problem<T>& p = a.problem;
  const bool values = blockIdx.z == 1;
  const Cache<T>& cache = values ? p.value : p.key;
  const int past = past_of(a);
  if (past < 0 || cache.present.data == nullptr) return;
  constexpr int kUnit = sizeof(Unit) / sizeof(T);
  const int units = static_cast<int>(cache.size) / kUnit, first = (values ? a.moves_value : a.moves_key) ? 0 : past;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kCopyThreads + threadIdx.x;
  if (i >= (past + p.fresh - first) * units) return;
  const int row = first + static_cast<int>(i / units), at = static_cast<int>(i % units) * kUnit;
  const int64_t head = blockIdx.y % p.kv_heads, b = blockIdx.y / p.kv_heads;
  const T* from = HeadRows<T>(cache, past, b, head).at(row) + at;
  *reinterpret_cast<Unit*>(row_of(cache.present, b, head, row) + at) = *reinterpret_cast<const Unit*>(from);
}

// Finds P of a shared cache for the kernels that do not search themselves. One cluster.
template <typename T>
__global__ void __launch_bounds__(kPastThreads) attention_cuda_past(Arguments<T> a, int* past) {
  using Search = PastSearch<kPastThreads / kWarp, 8>;
  __shared__ typename Search::Mailbox mailbox;
  Search search(&mailbox);
  onnxfuse::cuda::let_next_start();
  search.expect();
  onnxfuse::cuda::enter_cluster();
  onnxfuse::cuda::wait_for_previous();
  search.begin(a.mask, static_cast<int>(a.problem.batch));
  onnxfuse::cuda::wait_for_cluster();
  search.send();
  const int found = search.past(a);
  if (onnxfuse::cuda::cluster_rank() == 0 && threadIdx.x == 0) *past = found;
}

}  // namespace onnxfuse::attention::cuda
