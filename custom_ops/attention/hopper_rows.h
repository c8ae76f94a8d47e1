// The launch of hopper_rows.cuh, which is compiled apart: it takes long.
#pragma once

#include "attention/arguments.cuh"

namespace onnxfuse::attention::cuda {

// Attention of many rows in vectors of 16 bytes, head sizes up to 256; false, with nothing done, where the device is
// not of compute capability 9.0 or the build holds no code for 9.0a.
bool attend_on_hopper(const onnxfuse::cuda::Stream& stream, const Arguments<Half>& a);
bool attend_on_hopper(const onnxfuse::cuda::Stream& stream, const Arguments<BFloat16>& a);

}  // namespace onnxfuse::attention::cuda
