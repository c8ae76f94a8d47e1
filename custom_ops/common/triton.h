// Kernels written in Triton: compiled with the library by compile_triton.py, which also writes what uses this.
#pragma once

#include <cuda.h>

#include <mutex>

#include "common/cuda.h"

namespace onnxfuse::cuda {

// A kernel for one dtype. The driver loads it into the context of whichever device it is launched on.
class TritonKernel {
 public:
  // `image` is a fat binary, code for several devices, that holds `symbol`; both outlive the kernel.
  TritonKernel(const void* image, const char* symbol, unsigned threads, unsigned shared_bytes)
      : image_(image), symbol_(symbol), threads_(threads), shared_bytes_(shared_bytes) {}
  TritonKernel(const TritonKernel&) = delete;

  template <class... Arguments>
  void launch(const Stream& stream, dim3 grid, Arguments... arguments) const {
    // The last two parameters of what Triton compiles are memory that no kernel taken here asks for.
    void* nothing = nullptr;
    void* parameters[] = {&arguments..., &nothing, &nothing};
    launch_with(stream, grid, parameters);
  }

 private:
  void launch_with(const Stream& stream, dim3 grid, void** parameters) const;
  CUkernel loaded() const;

  const void* image_;
  const char* symbol_;
  unsigned threads_, shared_bytes_;
  mutable std::mutex mutex_;
  mutable CUkernel kernel_ = nullptr;
};

}  // namespace onnxfuse::cuda
