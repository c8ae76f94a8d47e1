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
  int device = 0;
  check(cudaGetDevice(&device), "the current device");
  thread_local int known_device = -1;
  thread_local bool has = false;
  if (device != known_device) {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, hopper_cuda_probe), "the attributes of a kernel");
    has = attributes.sharedSizeBytes > 0;
    known_device = device;
  }
  return has;
}

}  // namespace onnxfuse::cuda
