// Matrix products by cuBLAS, where the process has it: ONNX Runtime's CUDA provider brings it along. Nothing is linked.
#pragma once

#include "common/cuda.h"

namespace onnxfuse::cuda {

class Cublas {
 public:
  // That of the current device, which lives as long as the process; null if there is no cuBLAS in it.
  static const Cublas* of_device();

  static constexpr int64_t kWorkspace = 32 << 20;  // bytes, as cuBLAS recommends for compute capability 9.0

  // c = a b + beta c for row-major a: [m, k], b: [k, n] and c: [m, n] of one dtype, added up in float32; of float32
  // rounded to TF32 where the session allows that.
  void multiply(const Stream& stream, void* workspace, DType dtype, const void* a, const void* b, void* c, int64_t m,
                int64_t n, int64_t k, float beta) const;

 private:
  Cublas();

  void* handle_ = nullptr;
};

}  // namespace onnxfuse::cuda
