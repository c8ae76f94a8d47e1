// Embedding: y = table[ids], the rows of a table that ids select.
//
// ids: [...] int64|int32, from -V to V - 1, a negative one counted from the last row; table: [V, H]
// float16|bfloat16|float32; y: [..., H] of table's dtype, exact. Source: ai.onnx Gather-13 over axis 0.
// Errors: a table of another rank than 2; an id that is no row. On CUDA only the device sees the ids: there the result
// of such an id is NaN.
#pragma once
