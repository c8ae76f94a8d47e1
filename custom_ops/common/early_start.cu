#include <array>

#include "common/cuda.h"

namespace onnxfuse::cuda {
namespace {

// Compiled as all kernels are.
__global__ void any_kernel() {}

}  // namespace

bool can_start_early() {
  return of_current_device([] {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, any_kernel), "the attributes of a kernel");
    // Code for 8.0 that a newer device compiled for itself does not wait.
    return attributes.ptxVersion >= 90 && attributes.binaryVersion >= 90;
  });
}

int clusters_at_once(int size) {
  return of_current_device([] {
    std::array<int, kMostClusterBlocks + 1> counts{};
    check(cudaFuncSetAttribute(any_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytesAlone), "a kernel");
    for (int s = 1; s <= kMostClusterBlocks; ++s) {
      cudaLaunchAttribute cluster{};
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim.x = static_cast<unsigned>(s);
      cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
      cudaLaunchConfig_t config{};
      config.gridDim = static_cast<unsigned>(s);
      config.blockDim = kWarp;
      config.dynamicSmemBytes = kBytesAlone;
      config.attrs = &cluster;
      config.numAttrs = 1;
      check(cudaOccupancyMaxActiveClusters(&counts[s], any_kernel, &config), "how many clusters run at once");
    }
    return counts;
  })[size];
}

}  // namespace onnxfuse::cuda
