#include "common/cuda.h"
#include "common/hopper.cuh"

namespace onnxfuse::cuda {
namespace {

// Compiled as all kernels are; the one with the code for 9.0a can be told from the others.
__global__ void hopper_cuda_probe() {
#if ONNXFUSE_HOPPER
  __shared__ uint64_t barrier;
  if (threadIdx.x == 0) make_barrier(&barrier, 1);
#endif
}

}  // namespace

bool has_hopper() {
  return of_current_device([] {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, hopper_cuda_probe), "the attributes of a kernel");
    return attributes.sharedSizeBytes > 0;
  });
}

}  // namespace onnxfuse::cuda
