#include "attention/hopper_launch.cuh"
#include "attention/hopper_rows.h"

namespace onnxfuse::attention::cuda {

bool has_hopper_rows() {
  // The body that does something has barriers; which one is compiled is the same for all devices that take it.
  static const bool is_compiled = [] {
    cudaFuncAttributes attributes{};
    onnxfuse::cuda::check(cudaFuncGetAttributes(&attributes, attention_cuda_hopper_rows<Half, 64, true>), "Attention");
    return attributes.sharedSizeBytes > 0;
  }();
  return onnxfuse::cuda::device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 && is_compiled;
}

void attend_on_hopper(const onnxfuse::cuda::Stream& stream, const Arguments<Half>& a) { launch_hopper_rows(stream, a); }

}  // namespace onnxfuse::attention::cuda
