// RMSNorm and SkipRMSNorm on raw pointers, see rms_norm.h and skip_rms_norm.h.
//
// A block owns a row. Each thread keeps a vector of it in registers between the sum and the scaling, or in long rows
// up to kMostKept, so a row of up to 32768 16-bit elements is read once; what is beyond that is read again, from the
// second-level cache.
// Memory traffic: 2 * sizeof(T) bytes an element, with a skip 4 * sizeof(T).
#pragma once

#include "common/device.cuh"
#include "common/early_start.cuh"

namespace onnxfuse::cuda {

inline constexpr int kMostKept = 4;
inline constexpr unsigned kNormThreads = 1024;

// kSkip: x + skip is rounded to T, written to total, and normalised in place of x.
template <typename T, typename W, int kLanes, bool kSkip, int kKept>
__global__ void __launch_bounds__(kNormThreads, kKept == 1 ? 2 : 1)
    rms_norm_cuda_block_per_row(const T* x, const T* skip, const W* weight, T* y, T* total, int64_t d, float epsilon) {
  const int64_t row = blockIdx.x * d, step = static_cast<int64_t>(blockDim.x) * kLanes;
  const int64_t first = static_cast<int64_t>(threadIdx.x) * kLanes;
  let_next_start();
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    if (first + k * step < d) prefetch(weight + first + k * step);
  }
  wait_for_previous();
  const auto read = [&](int64_t i, float (&values)[kLanes]) {
    load<kLanes>(x + row + i, values);
    if constexpr (kSkip) {
      float added[kLanes];
      load<kLanes>(skip + row + i, added);
#pragma unroll
      for (int j = 0; j < kLanes; ++j) values[j] = widen(narrow<T>(values[j] + added[j]));
    }
  };

  float kept[kKept][kLanes], sum = 0;
  const auto add = [&](const float (&values)[kLanes]) {
#pragma unroll
    for (int j = 0; j < kLanes; ++j) sum += values[j] * values[j];
  };
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    if (first + k * step < d) read(first + k * step, kept[k]);
  }
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    if (first + k * step < d) add(kept[k]);
  }
  for (int64_t i = first + kKept * step; i < d; i += step) {
    float values[kLanes];
    read(i, values);
    add(values);
  }

  const float factor = 1.0f / sqrtf(block_sum(sum) / static_cast<float>(d) + epsilon);
  const auto write = [&](int64_t i, const float (&values)[kLanes]) {
    float scaled[kLanes];
    load<kLanes>(weight + i, scaled);
#pragma unroll
    for (int j = 0; j < kLanes; ++j) scaled[j] *= values[j] * factor;
    if constexpr (kSkip) store<kLanes>(total + row + i, values);
    store<kLanes>(y + row + i, scaled);
  };
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    if (first + k * step < d) write(first + k * step, kept[k]);
  }
  for (int64_t i = first + kKept * step; i < d; i += step) {
    float values[kLanes];
    read(i, values);
    write(i, values);
  }
}

// Launches on `rows` rows of d elements; skip and total are null without a skip.
template <bool kSkip, typename T, typename W>
void rms_norm_rows(const Stream& stream, const T* x, const T* skip, const W* weight, T* y, T* total, int64_t rows,
                   int64_t d, float epsilon) {
  if (d == 0) return;
  const bool vectors = d % kLanes<T> == 0 && is_aligned(x) && is_aligned(weight) && is_aligned(y) && is_aligned(skip) &&
                       is_aligned(total);
  // A vector a thread where that is enough: while some of a multiprocessor's blocks load, others store.
  const int64_t lanes = vectors ? kLanes<T> : 1, each = d <= kNormThreads * lanes ? 1 : kMostKept;
  const int64_t threads = std::min<int64_t>(kNormThreads, kWarp * divide_up(d, each * lanes * kWarp));
  const auto kernel = !vectors    ? rms_norm_cuda_block_per_row<T, W, 1, kSkip, kMostKept>
                      : each == 1 ? rms_norm_cuda_block_per_row<T, W, kLanes<T>, kSkip, 1>
                                  : rms_norm_cuda_block_per_row<T, W, kLanes<T>, kSkip, kMostKept>;
  stream.launch_early("RMSNorm", kernel, blocks(rows), static_cast<unsigned>(threads), 0, x, skip, weight, y, total, d,
                      epsilon);
}

}  // namespace onnxfuse::cuda
