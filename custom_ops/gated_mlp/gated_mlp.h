// GatedMLP: y = (act(h Wg + bg) * (h Wu + bu)) Wd + bd
//
//     x ------- + ---------- RMSNorm --- h --+-- Wg -- + bg -- act --+
//               |  |    (norm_weight)        |                       * --- Wd -- + bd -- y
//     skip -----+  +-- sum                   +-- Wu -- + bu ---------+
//
// x: [..., H] T = float32|float16|bfloat16; y: [..., O] T
// gate_weight, up_weight: [H, I] T; down_weight: [I, O] T; or packed panels of 32 columns, [I/32, H, 32] and
// [O/32, I, 32], where panel p, row k, lane j holds W[k, 32 p + j]. The rank tells; each weight may differ.
// Where T is float32 the CPU's kernel takes bfloat16 weights, too: gate and up, down, or all. It also takes
// int8, see common/gemm.h: [I/32, H/4, 32, 4] and [O/32, I/4, 32, 4], with gate_scale, up_scale: [I/32, H/32, 32] and
// down_scale: [O/32, I/32, 32] bfloat16, which multiply 32 rows of a column each.
// gate_bias, up_bias: [I] T, down_bias: [O] T, each optional.
// skip: like x, optional; the addition is rounded to T and is the output sum, which exists where skip does.
// norm_weight: [H] T or float32, optional: h = RMSNorm(x or sum) * norm_weight, see rms_norm/rms_norm.h; without it h
// is x or sum itself. Attribute epsilon: float, in units of x squared; required with norm_weight. Attribute activation:
// "silu" (z sigmoid(z)), "gelu" (z Phi(z), by erf) or "gelu_tanh" (its approximation by tanh).
//
// Source: Shazeer 2020, arXiv:2002.05202; the feed-forward block of Llama (silu) and Gemma (gelu_tanh).
// Numerics: everything between x and y in float32, but for sum and, in most kernels, h, which are rounded to T; one
// rounding to T at the end; the graph it replaces rounds to T after each operator.
// On CUDA, for more than one row of 16-bit numbers, the product of both projections is rounded to T as well, and most
// kernels round the projections, too. More than two rows of float32 are multiplied in TF32 where the session has
// use_tf32.
// Errors: dimensions that do not fit together, a weight in neither layout, an unknown activation, a missing epsilon.
#pragma once

namespace onnxfuse {

enum class Activation { kSilu, kGelu, kGeluTanh };

}  // namespace onnxfuse
