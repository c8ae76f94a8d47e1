#include <array>

#include "common/cuda.h"

namespace onnxfuse::cuda {
namespace {

constexpr int kMostSharing = 4;

// Compiled as all kernels are.
__global__ void any_kernel() {}

}  // namespace

bool can_start_early() {
  return of_current_device([] {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, any_kernel), "the attributes of a kernel");
    // Code for 8.0 that a newer device compiled for itself does not wait.
    const bool waits = attributes.ptxVersion >= 90 && attributes.binaryVersion >= 90;
    return waits && device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) >= kMostSharedBytes;
  });
}

int clusters_at_once(int size, int sharing) {
  const auto& counts = of_current_device([] {
    std::array<std::array<int, kMostSharing + 1>, kMostClusterBlocks + 1> counts{};
    check(cudaFuncSetAttribute(any_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytesAlone), "a kernel");
    for (int size = 1; size <= kMostClusterBlocks; ++size) {
      for (int sharing = 1; sharing <= kMostSharing; ++sharing) {
        cudaLaunchAttribute cluster{};
        cluster.id = cudaLaunchAttributeClusterDimension;
        cluster.val.clusterDim.x = static_cast<unsigned>(size);
        cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
        cudaLaunchConfig_t config{};
        config.gridDim = static_cast<unsigned>(size);
        config.blockDim = kWarp;
        config.dynamicSmemBytes = 2 * kBytesAlone / (sharing + 1);  // one block more would not fit
        config.attrs = &cluster;
        config.numAttrs = 1;
        check(cudaOccupancyMaxActiveClusters(&counts[size][sharing], any_kernel, &config),
              "how many clusters run at once");
      }
    }
    return counts;
  });
  return counts[size][sharing];
}

}  // namespace onnxfuse::cuda
