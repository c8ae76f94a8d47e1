#include "gated_mlp/hopper_launch.cuh"

namespace onnxfuse::mlp::cuda {

void multiply_on_hopper(const onnxfuse::cuda::Stream& stream, const BFloat16* a, int64_t rows, int64_t depth,
                        const PlainProduct<BFloat16>* products, int count) {
  launch_multiply(stream, a, rows, depth, products, count);
}

void gate_on_hopper(const onnxfuse::cuda::Stream& stream, const BFloat16* a, int64_t rows, int64_t depth,
                    const PlainProduct<BFloat16>& gate, const PlainProduct<BFloat16>& up, Activation activation) {
  launch_gate(stream, a, rows, depth, gate, up, activation);
}

}  // namespace onnxfuse::mlp::cuda
