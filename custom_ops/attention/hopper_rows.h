// The launch of hopper_rows.cuh, which is compiled apart: it takes long.
#pragma once

#include "attention/arguments.cuh"

namespace onnxfuse::attention::cuda {

// Where has_hopper(): attention of many rows in vectors of 16 bytes, head sizes up to 256. It writes present if
// a.copies, which is for attention without a window only.
void attend_on_hopper(const onnxfuse::cuda::Stream& stream, const Arguments<Half>& a);
void attend_on_hopper(const onnxfuse::cuda::Stream& stream, const Arguments<BFloat16>& a);

}  // namespace onnxfuse::attention::cuda
