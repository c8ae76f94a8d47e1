// Clusters of blocks, which can write each other's shared memory (compute capability 9.0).
#pragma once

#include "common/mma.cuh"

namespace onnxfuse::cuda {

__device__ inline int cluster_size() {
  int size = 1;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
  return size;
}

__device__ inline int cluster_rank() {
  int rank = 0;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}

// A barrier of all threads of the cluster, in two steps. What was stored before the first is seen after the second.
__device__ inline void arrive_at_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ inline void wait_for_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Stores to the place that `to`, in shared memory, has in the cluster's first block, which has to be running.
__device__ inline void store_in_first(float* to, float value) {
#if __CUDA_ARCH__ >= 900
  asm volatile("{ .reg .u32 place; mapa.shared::cluster.u32 place, %0, 0; st.shared::cluster.f32 [place], %1; }" ::"r"(
                   shared_address(to)),
               "f"(value)
               : "memory");
#endif
}

}  // namespace onnxfuse::cuda
