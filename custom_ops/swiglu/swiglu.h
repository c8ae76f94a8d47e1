// SwiGLU: y = gate * sigmoid(gate) * up, elementwise.
//
// gate, up: [...] float32|float16|bfloat16, of equal shapes; y: like gate.
// Source: Shazeer 2020, arXiv:2002.05202; between the projections of Llama's feed-forward block.
// Numerics: float32, one rounding to the dtype at the end; exp as in common/vec_math.h.
// Errors: gate and up of different shapes.
