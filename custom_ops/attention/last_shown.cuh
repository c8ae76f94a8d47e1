// Finds how many keys a shared cache has: the last one that the mask [batch, length] shows in any batch.
#pragma once

#include "attention/arguments.cuh"
#include "common/cluster.cuh"

namespace onnxfuse::attention::cuda {

// Blocks of a cluster share the entries; the first of them are on their way from the constructor on. kDeep: entries of
// a thread on their way at once.
template <int kDeep>
class LastShown {
 public:
  __device__ LastShown(const Mask& mask, int batch)
      : mask_(mask),
        entries_(batch * static_cast<int>(mask.length)),
        at_(onnxfuse::cuda::cluster_rank() * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)),
        step_(onnxfuse::cuda::cluster_size() * static_cast<int>(blockDim.x)) {
    load();
  }

  // The last column among the entries that the thread looks at; -1 if all are zero.
  __device__ int find() {
    const int length = static_cast<int>(mask_.length), columns = step_ % length;
    int column = at_ % length, found = -1;
    while (true) {
#pragma unroll
      for (int u = 0; u < kDeep; ++u) {
        if ((values_[u].x | values_[u].y) != 0) found = max(found, column);
        column += columns;
        if (column >= length) column -= length;
      }
      at_ += kDeep * step_;
      if (at_ >= entries_) return found;
      load();
    }
  }

 private:
  __device__ void load() {
#pragma unroll
    for (int u = 0; u < kDeep; ++u) {
      values_[u] = at_ + u * step_ < entries_ ? mask_.raw_first(at_ + u * step_) : uint2{0, 0};
    }
  }

  Mask mask_;
  int entries_, at_, step_;
  uint2 values_[kDeep];
};

// P of a shared cache with so many keys; -1 if these do not fit the buffer, the new keys or the bias.
template <typename T>
__device__ inline int past_before(const Arguments<T>& a, int64_t keys) {
  const bool fits = keys >= a.problem.fresh && keys <= a.room && (a.bias_keys == 0 || a.bias_keys == keys);
  return fits ? static_cast<int>(keys - a.problem.fresh) : -1;
}

// The same for all threads of a block without a cluster, which look for the last key together.
template <typename T>
__device__ inline int find_past(const Arguments<T>& a) {
  __shared__ int lasts[kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int last = __reduce_max_sync(0xffffffff, LastShown<8>(a.mask, static_cast<int>(a.problem.batch)).find());
  if (lane == 0) lasts[warp] = last;
  __syncthreads();
  return past_before(a, __reduce_max_sync(0xffffffff, lane < warps ? lasts[lane] : -1) + 1);
}

}  // namespace onnxfuse::attention::cuda
