#include "common/cuda.h"
#include "common/driver.h"

namespace onnxfuse::cuda {

void* driver_address(const char* name) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
  constexpr unsigned kSince = 12000;
  check(cudaGetDriverEntryPointByVersion(name, &address, kSince, cudaEnableDefault, &result), name);
#else
  check(cudaGetDriverEntryPoint(name, &address, cudaEnableDefault, &result), name);
#endif
  require(result == cudaDriverEntryPointSuccess, "the CUDA driver has no ", name,
          ", expected one of CUDA 12.0 or newer");
  return address;
}

}  // namespace onnxfuse::cuda
