#include <dlfcn.h>
#include <library_types.h>

#include <map>
#include <mutex>

#include "common/cublas.h"

namespace onnxfuse::cuda {
namespace {

// Of cuBLAS's C ABI, which has not changed since CUDA 11.
constexpr int kAsItIs = 0;                        // CUBLAS_OP_N
constexpr int kComputeFloat32 = 68;               // CUBLAS_COMPUTE_32F
constexpr int kComputeTf32 = 77;                  // CUBLAS_COMPUTE_32F_FAST_TF32
constexpr int kAnyAlgorithm = -1;                 // CUBLAS_GEMM_DEFAULT
constexpr int kNoReducedPrecisionReduction = 16;  // of cublasMath_t

struct Functions {
  int (*create)(void** handle) = nullptr;
  int (*set_math_mode)(void* handle, int mode) = nullptr;
  int (*set_stream)(void* handle, cudaStream_t stream) = nullptr;
  int (*set_workspace)(void* handle, void* workspace, size_t bytes) = nullptr;
  int (*gemm)(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a,
              cudaDataType a_type, int lda, const void* b, cudaDataType b_type, int ldb, const void* beta, void* c,
              cudaDataType c_type, int ldc, int compute_type, int algorithm) = nullptr;
  bool found = false;

  Functions() {
    for (const char* name : {"libcublas.so.13", "libcublas.so.12"}) {
      void* const library = dlopen(name, RTLD_NOW | RTLD_NOLOAD);
      if (library == nullptr) continue;
      found = find(library, "cublasCreate_v2", &create) && find(library, "cublasSetMathMode", &set_math_mode) &&
              find(library, "cublasSetStream_v2", &set_stream) &&
              find(library, "cublasSetWorkspace_v2", &set_workspace) && find(library, "cublasGemmEx", &gemm);
      if (found) return;
    }
  }

  template <typename Function>
  static bool find(void* library, const char* name, Function** function) {
    *function = reinterpret_cast<Function*>(dlsym(library, name));
    return *function != nullptr;
  }
};

const Functions& functions() {
  static const Functions functions;
  return functions;
}

void check_status(int status, const char* what) { require(status == 0, "cuBLAS: ", what, ": status ", status); }

cudaDataType type_of(DType dtype) {
  if (dtype == DType::kFloat32) return CUDA_R_32F;
  return dtype == DType::kFloat16 ? CUDA_R_16F : CUDA_R_16BF;
}

std::mutex& mutex() {
  static std::mutex mutex;
  return mutex;
}

}  // namespace

const Cublas* Cublas::of_device() {
  if (!functions().found) return nullptr;
  int device = 0;
  check(cudaGetDevice(&device), "the current device");
  static std::map<int, const Cublas*> handles;
  const std::lock_guard<std::mutex> lock(mutex());
  const Cublas*& found = handles[device];
  if (found == nullptr) found = new Cublas;
  return found;
}

Cublas::Cublas() {
  check_status(functions().create(&handle_), "a handle");
  check_status(functions().set_math_mode(handle_, kNoReducedPrecisionReduction), "the mode");
}

void Cublas::multiply(const Stream& stream, void* workspace, DType dtype, const void* a, const void* b, void* c,
                      int64_t m, int64_t n, int64_t k, float beta) const {
  constexpr int64_t kMost = 0x7fffffff;
  require(m <= kMost && n <= kMost && k <= kMost, "a product of [", m, ",", k, "] and [", k, ",", n, "] is too large");
  const cudaDataType type = type_of(dtype);
  const int compute = dtype == DType::kFloat32 && stream.allows_tf32() ? kComputeTf32 : kComputeFloat32;
  const float alpha = 1;
  const int rows = static_cast<int>(m), columns = static_cast<int>(n), depth = static_cast<int>(k);
  const std::lock_guard<std::mutex> lock(mutex());  // the stream and the workspace are the handle's until the launch
  check_status(functions().set_stream(handle_, stream.get()), "the stream");
  check_status(functions().set_workspace(handle_, workspace, kWorkspace), "the workspace");
  // cuBLAS has columns first: what it sees is the transpose of each, and c^T = b^T a^T.
  check_status(functions().gemm(handle_, kAsItIs, kAsItIs, columns, rows, depth, &alpha, b, type, columns, a, type,
                                depth, &beta, c, type, columns, compute, kAnyAlgorithm),
               "a product");
}

}  // namespace onnxfuse::cuda
