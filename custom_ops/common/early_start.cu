#include "common/cuda.h"

namespace onnxfuse::cuda {
namespace {

// Compiled as all kernels are.
__global__ void any_kernel() {}

}  // namespace

bool can_start_early() {
  int device = 0;
  check(cudaGetDevice(&device), "the current device");
  thread_local int known_device = -1;
  thread_local bool can = false;
  if (device != known_device) {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, any_kernel), "the attributes of a kernel");
    // Code for 8.0 that a newer device compiled for itself does not wait.
    can = attributes.ptxVersion >= 90 && attributes.binaryVersion >= 90;
    known_device = device;
  }
  return can;
}

}  // namespace onnxfuse::cuda
