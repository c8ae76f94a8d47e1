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

// The first step of a barrier that orders no stores: once wait_for_cluster() returns, all blocks of the cluster run.
__device__ inline void enter_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
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

// A barrier in shared memory, made for one thread, gets its arrival and waits for so many bytes, too.
__device__ inline void arrive_expecting(uint64_t* barrier, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
#endif
}
// Stores to the place that `to`, in shared memory, has in a block of the cluster, which has to be running.
__device__ inline void store_in(int block, float* to, float value) {
#if __CUDA_ARCH__ >= 900
  asm volatile("{ .reg .u32 place; mapa.shared::cluster.u32 place, %0, %1; st.shared::cluster.f32 [place], %2; }" ::"r"(
                   shared_address(to)),
               "r"(block), "f"(value)
               : "memory");
#endif
}
__device__ inline void store_in(int block, float* to, const float4& value) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{ .reg .u32 place; mapa.shared::cluster.u32 place, %0, %1; "
      "st.shared::cluster.v4.f32 [place], {%2, %3, %4, %5}; }" ::"r"(shared_address(to)),
      "r"(block), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w)
      : "memory");
#endif
}

// Numbers that blocks of a cluster send to each other: stores to the shared memory of a block, whose bytes a barrier
// there counts. A block without others sends to itself.
class Mail {
 public:
  __device__ explicit Mail(uint64_t* barrier) : barrier_(barrier), alone_(cluster_size() == 1) {}

  // One thread tells how many bytes the block will get, before enter_cluster(). To be waited for.
  __device__ void expect(uint32_t bytes) const {
    if (alone_) return;
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "mbarrier.init.shared::cta.b64 [%0], 1;\n"
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n"
        "fence.mbarrier_init.release.cluster;" ::"r"(shared_address(barrier_)),
        "r"(bytes)
        : "memory");
#endif
  }

  // Stores to the place that `to`, in shared memory, has in a block of the cluster, which has to be running.
  template <typename V>
  __device__ void send(int block, V* to, V value) const {
    static_assert(sizeof(V) == 4);
    if (alone_) {
      *to = value;
      return;
    }
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{ .reg .u32 place, barrier;\n"
        "mapa.shared::cluster.u32 place, %0, %2;\n"
        "mapa.shared::cluster.u32 barrier, %1, %2;\n"
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [place], %3, [barrier]; }" ::"r"(shared_address(to)),
        "r"(shared_address(barrier_)), "r"(block), "r"(reinterpret_cast<const uint32_t&>(value))
        : "memory");
#endif
  }

  // Waits until all has come. For all threads of the block.
  __device__ void wait() const {
    if (alone_) return __syncthreads();
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{ .reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], 0;\n"
        "@!done bra again; }" ::"r"(shared_address(barrier_))
        : "memory");
#endif
  }

 private:
  uint64_t* barrier_;
  bool alone_;
};

}  // namespace onnxfuse::cuda
