#include "attention/eight_rows_launch.cuh"

namespace onnxfuse::attention::cuda {

void attend_eight_rows(const onnxfuse::cuda::Stream& stream, const Arguments<Half>& a) { launch_eight_rows(stream, a); }

}  // namespace onnxfuse::attention::cuda
