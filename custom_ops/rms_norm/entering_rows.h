// The rows that enter a matrix product behind a residual addition and a norm, a block of them at a time. Included
// behind common/each_target.h by a file whose kernels include rms_norm/entering_rows_kernel.h.
#pragma once

#include <optional>

#include "common/context.h"
#include "common/simd_target.h"

namespace onnxfuse {
namespace {

// h: [rows, d] is x, or x + skip rounded to T, which `sum` receives if it is not null, or RMSNorm of that. The norm's
// weight is of dtype T or float32, if it is present.
template <typename T>
class EnteringRows {
 public:
  // `most`: rows of a block, at most.
  EnteringRows(const Context& context, const T* x, const T* skip, T* sum, const AnyTensor& norm_weight, float epsilon,
               int64_t d, int64_t most)
      : context_(context), x_(x), skip_(skip), sum_(sum), norm_weight_(norm_weight), epsilon_(epsilon), d_(d) {
    if (skip != nullptr && sum == nullptr) own_sum_.emplace(context, most * d);
    if (norm_weight.present) normed_.emplace(context, most * d);
  }

  // `rows` rows of h from row `first` on, until the next call.
  const T* block(int64_t first, int64_t rows) const {
    const T* const x = x_ + first * d_;
    const T* const skip = skip_ != nullptr ? skip_ + first * d_ : nullptr;
    T* const total = sum_ != nullptr ? sum_ + first * d_ : own_sum_ ? own_sum_->data() : nullptr;
    T* const normed = normed_ ? normed_->data() : nullptr;
    if (skip == nullptr && normed == nullptr) return x;
    const auto add = ONNXFUSE_KERNEL(add_rows<T>);
    const auto norm = ONNXFUSE_KERNEL(rms_norm_rows<T, T>);
    const auto norm_by_floats = ONNXFUSE_KERNEL(rms_norm_rows<T, float>);
    const bool same = norm_weight_.dtype == kDTypeOf<T>;
    context_.parallel_for(rows, 0.3 * static_cast<double>(d_), [&](int64_t begin, int64_t end) {
      const int64_t at = begin * d_, count = end - begin;
      const T* in = x + at;
      if (skip != nullptr) {
        add(in, skip + at, total + at, count * d_);
        in = total + at;
      }
      if (normed == nullptr) return;
      if (same) {
        norm(in, static_cast<const T*>(norm_weight_.data), normed + at, count, d_, epsilon_);
      } else {
        norm_by_floats(in, static_cast<const float*>(norm_weight_.data), normed + at, count, d_, epsilon_);
      }
    });
    return normed != nullptr ? normed : total;
  }

 private:
  const Context& context_;
  const T *x_, *skip_;
  T* sum_;
  AnyTensor norm_weight_;
  float epsilon_;
  int64_t d_;
  std::optional<Scratch<T>> own_sum_, normed_;
};

}  // namespace
}  // namespace onnxfuse
