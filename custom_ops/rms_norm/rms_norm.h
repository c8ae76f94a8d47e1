// RMSNorm: y = x / sqrt(mean(x^2) + epsilon) * weight, over the last dimension.
//
// x: [..., D] float32|float16|bfloat16; weight: [D] of x's dtype or float32; y: like x. Attribute epsilon: float, in
// units of x squared. Source: Zhang & Sennrich 2019, arXiv:1910.07467; the norm of Llama.
// Numerics: sums and products in float32, one rounding to x's dtype at the end.
// Errors: a weight that is not [D], x without a dimension.
