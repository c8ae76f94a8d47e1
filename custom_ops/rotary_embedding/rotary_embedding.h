// RotaryEmbedding: rotates pairs of features of every head by the angles of a table.
//
//   half-split:  y[i] = x[i] cos[i] - x[i+h] sin[i]          y[i+h] = x[i+h] cos[i+h] + x[i] sin[i+h]
//   interleaved: y[2i] = x[2i] cos[2i] - x[2i+1] sin[2i]     y[2i+1] = x[2i+1] cos[2i+1] + x[2i] sin[2i+1]
//
// for i < h = R / 2; a table of width R / 2 holds one entry a pair, which both its features use.
//
// x: [B, S, N*D] or [B, N, S, D] float32|float16|bfloat16; y: like x.
// cos, sin: [B or 1, S, R or R/2] of x's dtype or float32, both alike.
// Attributes: num_heads: int = 0, required for rank 3; interleaved: int = 0; rotary_dim: int = 0, R, where 0 means D;
// features from R on are copied. Source: Su et al. 2021, arXiv:2104.09864; ai.onnx RotaryEmbedding-23.
// Numerics: products and sums in float32, one rounding to x's dtype.
// Errors: another rank, num_heads that does not divide x or contradicts it, an odd or too large rotary_dim, tables that
// do not fit x or differ from each other.
#pragma once

#include <cstdint>

namespace onnxfuse {

// The heads of x as groups of vectors: the vectors of a group lie one after the other, and so do the groups.
struct RotaryLayout {
  int64_t head_size, rotary_dim, table_width;
  bool interleaved;
  int64_t group_size;  // vectors in a group: the heads of a position (rank 3), the positions of a head (rank 4)
  int64_t table_step;  // from a vector's table row to that of the next one in the group, in elements
  int64_t groups_a_batch;
  int64_t table_group_step;  // from a group's table row to that of the next one in the batch
  int64_t table_batch_step;  // 0 if all batches share the table
};

}  // namespace onnxfuse
