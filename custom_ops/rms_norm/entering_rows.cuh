// The rows that enter a matrix product behind a residual addition and a norm, made by kernels of their own.
#pragma once

#include "rms_norm/rms_norm_kernel.cuh"

namespace onnxfuse::cuda {

inline constexpr unsigned kAddThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kAddThreads) add_cuda(const T* x, const T* skip, T* total, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kAddThreads + threadIdx.x;
  if (i < count) total[i] = narrow<T>(widen(x[i]) + widen(skip[i]));
}

// h: [rows, d] is x, or x + skip rounded to T, which `sum` receives if it is not null, or RMSNorm of that. The norm's
// weight is of dtype T or float32. h is x or sum itself, or lies in scratch memory for as long as this object lives.
template <typename T>
class EnteringRows {
 public:
  EnteringRows(const Context& context, const Stream& stream, const DeviceMemory& memory, const T* x, const T* skip,
               T* sum, const AnyTensor& norm_weight, float epsilon, int64_t rows, int64_t d)
      : scratch_(context, memory, bytes(rows * d, skip != nullptr && sum == nullptr, norm_weight.present)) {
    const int64_t count = rows * d;
    rows_ = x;
    if (skip != nullptr) {
      // Behind h, so that both are aligned.
      if (sum == nullptr) sum = scratch_.template at<T>(norm_weight.present ? aligned(count) : 0);
      rows_ = sum;
    }
    if (!norm_weight.present) {
      if (skip == nullptr) return;
      stream.launch("the addition before a product", add_cuda<T>, blocks(divide_up(count, kAddThreads)), kAddThreads, 0,
                    x, skip, sum, count);
      return;
    }
    T* const h = scratch_.template at<T>(0);
    const auto normalise = [&](const auto* weight) {
      if (skip != nullptr) {
        rms_norm_rows<true>(stream, x, skip, weight, h, sum, rows, d, epsilon);
      } else {
        rms_norm_rows<false>(stream, x, skip, weight, h, sum, rows, d, epsilon);
      }
    };
    if (norm_weight.dtype == kDTypeOf<T>) {
      normalise(static_cast<const T*>(norm_weight.data));
    } else {
      normalise(static_cast<const float*>(norm_weight.data));
    }
    rows_ = h;
  }

  const T* get() const { return rows_; }

 private:
  static int64_t aligned(int64_t count) { return divide_up(count * static_cast<int64_t>(sizeof(T)), 16) * 16; }

  static int64_t bytes(int64_t count, bool has_sum, bool has_norm) { return (has_sum + has_norm) * aligned(count); }

  DeviceScratch scratch_;
  const T* rows_;
};

}  // namespace onnxfuse::cuda
