// Linear: y_i = h W_i + b_i, for up to three weights that share h
//
//     x ------- + ---------- RMSNorm --- h --+-- W_0 -- + b_0 -- y_0
//               |  |    (norm_weight)        +-- W_1 -- + b_1 -- y_1
//     skip -----+  +-- sum                   +-- W_2 -- + b_2 -- y_2
//
// x: [..., K] T = float32|float16|bfloat16. skip: like x, optional; the addition is rounded to T and is the output sum.
// norm_weight: [K] T or float32, optional: h = RMSNorm(x or sum) * norm_weight, see rms_norm/rms_norm.h.
// weight_i: [K, N_i] T, or packed panels of 32 columns, [N_i/32, K, 32], as in gated_mlp/gated_mlp.h; the rank tells.
// Where T is float32 a weight may be bfloat16. On the CPU it may be int8, see common/gemm.h: [N_i/32, K/4, 32, 4] with
// scale_i: [N_i/32, K/32, 32] bfloat16, which multiplies 32 rows of a column. bias_i: [N_i] T, optional. y_i: [...,
// N_i] T; sum: like x. weight_1 and weight_2 are optional; y_i exists where weight_i does, sum where skip does. Order
// of the inputs: x, skip, norm_weight, weight_0, bias_0, weight_1, bias_1, weight_2, bias_2, scale_0, scale_1, scale_2;
// of the outputs: y_0, y_1, y_2, sum. Attribute epsilon: float, in units of x squared; required with norm_weight.
//
// Source: the projections of a Llama layer (Vaswani et al. 2017, arXiv:1706.03762) behind its norm (Zhang & Sennrich
// 2019, arXiv:1910.07467): query, key and value; the attention's output; the last norm and the logits.
// Numerics: h may be rounded to T or stay in float32, sums are float32, one rounding to T at the end; see common/gemm.h
// for the products. On CUDA more than two rows of float32 are multiplied in TF32 where the session has use_tf32.
// Errors: dimensions that do not fit together, a weight in neither layout or of another dtype, a missing epsilon.
#pragma once

namespace onnxfuse {

inline constexpr int kMostProducts = 3;  // of one node

}  // namespace onnxfuse
