#include <set>
#include <tuple>

#include "common/cuda.h"

namespace onnxfuse::cuda {
namespace {

// Sets an attribute of a kernel to find() on the current device, the first time that this thread asks for it: every
// thread sets the same value.
template <class Find>
void set_once(const void* kernel, cudaFuncAttribute attribute, const char* name, const Find& find) {
  thread_local std::set<std::tuple<int, const void*, cudaFuncAttribute>> known;
  int device = 0;
  check(cudaGetDevice(&device), "the current device");
  const auto key = std::make_tuple(device, kernel, attribute);
  if (known.count(key) > 0) return;
  check(cudaFuncSetAttribute(kernel, attribute, find()), name);
  known.insert(key);
}

}  // namespace

void allow_most_shared_memory(const void* kernel, const char* name) {
  set_once(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, name, [&] {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, kernel), name);
    return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - static_cast<int>(attributes.sharedSizeBytes);
  });
}

void divide_memory_alike(const void* kernel, const char* name) {
  constexpr int kSharedPercent = 80;
  set_once(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, name, [] { return kSharedPercent; });
}

}  // namespace onnxfuse::cuda
