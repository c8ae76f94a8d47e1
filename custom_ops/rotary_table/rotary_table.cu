#include "common/device.cuh"
#include "common/early_start.cuh"
#include "rotary_table/node.h"
#include "rotary_table/rotary_table.h"

namespace onnxfuse {
namespace cuda {

inline constexpr unsigned kTableThreads = 128;

// A thread owns one entry; 8 bytes written each. The functions are evaluated in double, which makes the rounding to
// float32 the only error that counts; there are few entries.
__global__ void rotary_table_cuda(const int64_t* positions, const float* inv_freq, float scale, float* cosines,
                                  float* sines, int64_t count, int64_t frequencies) {
  let_next_start();
  wait_for_previous();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const float angle = static_cast<float>(positions[i / frequencies]) * inv_freq[i % frequencies];
  double sine, cosine;
  sincos(static_cast<double>(angle), &sine, &cosine);
  cosines[i] = static_cast<float>(cosine) * scale;
  sines[i] = static_cast<float>(sine) * scale;
}

}  // namespace cuda

namespace {

class RotaryTable : public RotaryTableNode {
 public:
  using RotaryTableNode::RotaryTableNode;

  void compute(const Context& context) const {
    const Arguments a = arguments(context);
    const int64_t count = a.count * a.frequencies;
    cuda::Stream(context).launch_early("RotaryTable", cuda::rotary_table_cuda,
                                       cuda::blocks(cuda::divide_up(count, cuda::kTableThreads)), cuda::kTableThreads,
                                       0, a.positions, a.inv_freq, scale_, a.cosines, a.sines, count, a.frequencies);
  }
};

const Register<RotaryTable> registered("RotaryTable", kCudaProvider);

}  // namespace
}  // namespace onnxfuse
