// The kernel of eight_rows.cuh, one file for each dtype.
#pragma once

#include "attention/arguments.cuh"

namespace onnxfuse::attention::cuda {

inline constexpr int kEightRows = 8;

// Head sizes of at most 256 in 16-byte vectors; if new keys are to be rotated, there are at most 16. Splits the keys
// into a.parts.count parts, and on devices that have clusters beyond that.
void attend_eight_rows(const onnxfuse::cuda::Stream& stream, const Arguments<Half>& a);
void attend_eight_rows(const onnxfuse::cuda::Stream& stream, const Arguments<BFloat16>& a);

}  // namespace onnxfuse::attention::cuda
