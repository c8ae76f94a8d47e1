#include "attention/hopper_launch.cuh"
#include "attention/hopper_rows.h"

namespace onnxfuse::attention::cuda {

void attend_on_hopper(const onnxfuse::cuda::Stream& stream, const Arguments<Half>& a) { launch_hopper_rows(stream, a); }

}  // namespace onnxfuse::attention::cuda
