#include "common/driver.h"
#include "common/triton.h"

namespace onnxfuse::cuda {
namespace {

void check_result(CUresult result, const char* symbol, const char* what) {
  static const auto text = driver_function<decltype(cuGetErrorString)>("cuGetErrorString");
  if (result == CUDA_SUCCESS) return;
  const char* message = "unknown error";
  text(result, &message);
  fail("CUDA: the Triton kernel ", symbol, ": ", what, ": ", message);
}

}  // namespace

CUkernel TritonKernel::loaded() const {
  static const auto load = driver_function<decltype(cuLibraryLoadData)>("cuLibraryLoadData");
  static const auto find = driver_function<decltype(cuLibraryGetKernel)>("cuLibraryGetKernel");
  const std::lock_guard<std::mutex> lock(mutex_);
  if (kernel_ == nullptr) {
    CUlibrary library = nullptr;
    check_result(load(&library, image_, nullptr, nullptr, 0, nullptr, nullptr, 0), symbol_, "loading");
    check_result(find(&kernel_, library, symbol_), symbol_, "its entry");
  }
  return kernel_;
}

void TritonKernel::launch_with(const Stream& stream, dim3 grid, void** parameters) const {
  static const auto set = driver_function<decltype(cuKernelSetAttribute)>("cuKernelSetAttribute");
  static const auto launch = driver_function<decltype(cuLaunchKernel)>("cuLaunchKernel");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const CUkernel kernel = loaded();
  constexpr unsigned kWithoutAsking = 48 << 10;
  if (shared_bytes_ > kWithoutAsking) {
    int device = 0;  // numbered as the driver does
    check(cudaGetDevice(&device), "the current device");
    check_result(set(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, static_cast<int>(shared_bytes_), kernel, device),
                 symbol_, "its shared memory");
  }
  check_result(launch(reinterpret_cast<CUfunction>(kernel), grid.x, grid.y, grid.z, threads_, 1, 1, shared_bytes_,
                      stream.get(), parameters, nullptr),
               symbol_, "a launch");
}

}  // namespace onnxfuse::cuda
