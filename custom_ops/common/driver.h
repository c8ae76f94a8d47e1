// Functions of the CUDA driver, found at run time: the library is not linked to it.
#pragma once

namespace onnxfuse::cuda {

// The address of a function of the driver, as CUDA 12.0 has it. An error where the driver is older.
void* driver_address(const char* name);

// driver_function<decltype(cuInit)>("cuInit")
template <typename Function>
Function* driver_function(const char* name) {
  return reinterpret_cast<Function*>(driver_address(name));
}

}  // namespace onnxfuse::cuda
