#include "gated_mlp/hopper_launch.cuh"

namespace onnxfuse::mlp::cuda {

bool is_for_hopper(int64_t rows) {
  const int64_t tiles = divide_up(rows, kHopperRows), launched = divide_up(tiles, kHopperBlocks) * kHopperBlocks;
  return rows >= kHopperRows * kHopperBlocks && 16 * tiles >= 15 * launched && onnxfuse::cuda::has_hopper();
}

void multiply_on_hopper(const onnxfuse::cuda::Stream& stream, const Half* a, int64_t rows, int64_t depth,
                        const PlainProduct<Half>* products, int count) {
  launch_multiply(stream, a, rows, depth, products, count);
}

void gate_on_hopper(const onnxfuse::cuda::Stream& stream, const Half* a, int64_t rows, int64_t depth,
                    const PlainProduct<Half>& gate, const PlainProduct<Half>& up, Activation activation) {
  launch_gate(stream, a, rows, depth, gate, up, activation);
}

}  // namespace onnxfuse::mlp::cuda
