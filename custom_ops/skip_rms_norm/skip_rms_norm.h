// SkipRMSNorm: sum = x + skip; y = sum / sqrt(mean(sum^2) + epsilon) * weight, over the last dimension.
//
// x, skip: [..., D] float32|float16|bfloat16, of equal shapes; weight: [D] of x's dtype or float32; y, sum: like x.
// Attribute epsilon: float, in units of x squared.
// Source: the residual addition and the norm after it (Zhang & Sennrich 2019, arXiv:1910.07467) of a Llama layer.
// Numerics: sum is rounded to x's dtype before it is normalised, as in the separate operators; the rest is RMSNorm's.
// Errors: x and skip of different shapes, a weight that is not [D], x without a dimension.
