// Kernels that start while the one before them in the stream is still running (programmatic dependent launch).
//
// Such a kernel is launched by Stream::launch_early, lets its own successor start from the first line on, or from where
// the successor's loads no longer get in its way, and calls wait_for_previous() before it touches anything that earlier
// kernels write or read: only what never changes, as constant weights, may be read before, and anything be fetched into
// the second-level cache. All threads of all its blocks call it, so that no kernel ends before the ones before it have:
// whoever waits for a kernel then has waited for all that came before.
#pragma once

#include "common/cuda.h"

namespace onnxfuse::cuda {

// Lets the next kernel of the stream start as soon as all blocks of this one run and leave room for its blocks.
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// 16 bytes that are read once, not before the code that stands before this. kOffset: bytes from p on.
template <int kOffset = 0>
__device__ inline uint4 load_once(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4 + %5];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p), "n"(kOffset)
               : "memory");
  return v;
}

// Has the second-level cache fetch what is at p, which may change until it is read.
__device__ inline void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p) : "memory"); }
// The same of so many bytes from an address on, both multiples of 16.
__device__ inline void prefetch(const void* p, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes) : "memory");
#endif
}

// Waits until the kernels before this one have ended and their results can be seen.
__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace onnxfuse::cuda
