// GatedMLP: y = (act(x Wg + bg) * (x Wu + bu)) Wd + bd
//
//     x --+-- Wg -- + bg -- act --+
//         |                       * --- Wd -- + bd -- y
//         +-- Wu -- + bu ---------+
//
// x: [..., H] T = float32|float16|bfloat16; y: [..., O] T
// gate_weight, up_weight: [H, I] T; down_weight: [I, O] T; or packed panels of 32 columns, [I/32, H, 32] and
// [O/32, I, 32], where panel p, row k, lane j holds W[k, 32 p + j]. The rank tells; each weight may differ.
// Where T is float32 the CPU's kernel takes bfloat16 weights, too: gate and up, down, or all.
// gate_bias, up_bias: [I] T, down_bias: [O] T, each optional.
// Attribute activation: "silu" (z sigmoid(z)), "gelu" (z Phi(z), by erf) or "gelu_tanh" (its approximation by tanh).
//
// Source: Shazeer 2020, arXiv:2002.05202; the feed-forward block of Llama (silu) and Gemma (gelu_tanh).
// Numerics: everything between x and y in float32, one rounding to T at the end; the graph it replaces rounds to T
// after each operator.
// On CUDA, for more than 8 rows of 16-bit numbers, both projections and their product are rounded to T as well.
// Errors: dimensions that do not fit together, a weight in neither layout, an unknown activation.
#pragma once

namespace onnxfuse {

enum class Activation { kSilu, kGelu, kGeluTanh };

}  // namespace onnxfuse
