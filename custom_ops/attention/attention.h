// Attention: y = softmax(q k^T * scale + bias, over the visible keys) v, grouped-query, with a key-value cache.
//
//   q: [B, S, N*D] or [B, N, S, D]     k: [B, L', K*D] or [B, K, L', D]     v: [B, L', K*Dv] or [B, K, L', Dv]
//   past_key: [B, K, P, D], past_value: [B, K, P, Dv] (optional)  all of one dtype T: float32|float16|bfloat16
//   attention_mask: [B, L] int64|int32|bool (optional)            key j of batch b is visible iff not zero
//   bias: [B|1, N|1, S|1, L] or [B|1, S|1, L] T|float32 (optional)  added to the scaled scores
//   cos, sin: [B|1, S, W] T|float32, both alike (optional)        rotate q and k first, see rotary_embedding.h; S = L'
//   y: T, laid out as q, with Dv for D
//   present_key: [B, K, L, D], present_value: [B, K, L, Dv] T (optional): past and new rows, L = P + L'
//
// Query head h reads key-value head h / (N / K).
// Attributes: num_heads (N), kv_num_heads (K), scale (0: 1 / sqrt(D)), causal (key j is visible to query i iff
// j <= i + L - S), window (if positive, also j > i + L - S - window), softcap (if positive: a score becomes
// softcap * tanh(score / softcap), after scale and before bias), shared_cache, past_rows; interleaved and rotary_dim
// (R) with cos and sin, as in RotaryEmbedding. present holds rotated keys.
//
// past_rows: past and present have their rows before the heads: past_key [B, P, K, D], present_key [B, L, K, D] and so
// on. Not together with shared_cache.
//
// shared_cache: past and present are buffers [B, K, M, D|Dv] of one shape, usually of one memory. attention_mask
// [B, T] is required and gives the length: L = 1 + the last index at which any batch is not zero; the new rows are
// written at P = L - L' .. L-1.
//
// A query that sees no key gives zeros. A bias is a number like any other, however large; -infinity hides a key.
// Numerics: scores, softmax and sums in float32, one rounding to T; rotated keys are rounded to T, queries may be.
// Weights below e^-87 of the largest count as 0. Errors: shapes that do not fit together, a mask that is longer than
// the buffers or shorter than the new keys; on CUDA, where the mask of a shared cache stays on the device, such a mask
// makes y NaN and leaves present as it is. The tensor cores of CUDA take the weights of the softmax rounded to T,
// and float32, of many rows, in TF32 where the session has use_tf32.
// Sources: Vaswani et al. 2017 (arXiv:1706.03762), Ainslie et al. 2023 (arXiv:2305.13245) for grouped queries,
// Dao et al. 2022 (arXiv:2205.14135) for the online softmax in blocks.
#pragma once

#include <cstdint>

namespace onnxfuse::attention {

// Rows of adjacent features, with strides in elements.
template <typename T>
struct Rows {
  T* data;
  int64_t batch, head, row;

  T* at(int64_t b, int64_t h, int64_t r) const { return data + b * batch + h * head + r * row; }
};

// Keys or values: rows 0..P-1 come from `past`, the others from `fresh`; `present`, if its data is set, receives them.
template <typename T>
struct Cache {
  int64_t size;  // D or Dv
  Rows<const T> past, fresh;
  Rows<T> present;

  // Whether past rows have to be written, too: not where they are in present already.
  bool moves() const { return present.data != nullptr && present.data != past.data; }
};

// What the padding mask shows of a batch: keys first..last-1; if `hidden`, those of them where hidden[key] is 0 and
// not -infinity.
struct Visible {
  int64_t first, last;
  const float* hidden;
};

// Strides are 0 along axes that broadcast. At most one of the pointers is set: the dtype of the bias decides which.
template <typename T>
struct Bias {
  const T* narrow;
  const float* single;
  int64_t batch, head, row;
};

template <typename T>
struct Problem {
  int64_t batch, queries, heads, kv_heads;  // B, S, N, K
  int64_t past, fresh;                      // P, L'
  float scale, softcap;
  bool causal;
  int64_t window;
  Rows<const T> q;
  Rows<T> y;
  Cache<T> key, value;
  const Visible* visible;  // [B]
  Bias<T> bias;

  int64_t keys() const { return past + fresh; }
  int64_t group() const { return heads / kv_heads; }
  // Rows of one key-value head: row r is query r / group of head r % group, so that keys and values are read once for
  // all heads of a group, and neighbouring rows see nearly the same keys.
  int64_t rows() const { return queries * group(); }
};

// Some rows of one key-value head against some of its keys, for one thread.
struct Task {
  int64_t batch, head;
  int64_t row_begin, row_end;
  int64_t key_begin, key_end;
  bool copies;     // also writes these keys and values to present
  bool streams;    // past the caches
  float* partial;  // if set, gets a Partial in place of y

  int64_t rows() const { return row_end - row_begin; }
};

}  // namespace onnxfuse::attention
