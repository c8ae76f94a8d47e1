// The online softmax, a block of keys at a time. Included by attention_kernel.h.

inline constexpr float kInfinity = __builtin_inff();

// e^x for x <= 0, relative error below 2e-7; exactly 0 below -87.3, where results become subnormal and slow to compute
// with; NaN for NaN.
ONNXFUSE_INLINE Vec exp_negative(Vec x) {
  const Vec lowest = splat(-87.3f), log2_e = splat(1.44269504f);
  // Adding 1.5 * 2^23 rounds to an integer. What this makes of x below `lowest` is not used.
  const Vec n = fma(x, log2_e, splat(0x1.8p23f)) - splat(0x1.8p23f);
  const Vec f = fma(x, log2_e, splat(0.0f) - n);
  // Minimax polynomial of 2^f for |f| <= 1/2.
  Vec p = splat(0.00015345812f);
  for (const float c : {0.0013399931f, 0.009618489f, 0.055503288f, 0.24022643f, 0.6931472f, 1.0f})
    p = fma(p, f, splat(c));
  return select(less(x, lowest), splat(0.0f), scale_by_power_of_two(p, n));
}

// tanh(x), relative error below 3e-7.
ONNXFUSE_INLINE Vec tanh(Vec x) {
  const Vec e = exp_negative(splat(-2.0f) * abs(x));
  const Vec far = (splat(1.0f) - e) / (splat(1.0f) + e);
  // Near 0 that difference cancels: x + x^3 P(x^2), with P fitted for |x| < 5/8.
  const Vec square = x * x;
  Vec p = splat(-0.00569199f);
  for (const float c : {0.02062629f, -0.05373532f, 0.13331381f, -0.33333279f}) p = fma(p, square, splat(c));
  const Vec near = fma(x * square, p, x);
  return select(less(abs(x), splat(0.625f)), near, select(less(x, splat(0.0f)), splat(0.0f) - far, far));
}

// scores -> softcap * tanh(scores / softcap), for whole vectors.
inline void cap(float* scores, int64_t count, float softcap) {
  const Vec factor = splat(softcap), inverse = splat(1.0f / softcap);
  for (int64_t i = 0; i < count; i += kLanes) store(scores + i, factor * tanh(load(scores + i) * inverse));
}

// Of each row: the largest score so far, the sum of its weights exp(score - maximum), and what earlier sums must be
// multiplied with since the maximum has changed.
struct RowState {
  float *maximum, *sums, *factors;
};

template <typename Lanes>
ONNXFUSE_INLINE Vec update_maximum(RowState state, int64_t r, Vec top, Lanes lanes) {
  const Vec before = load(state.maximum + r, lanes), after = max(top, before);
  store(state.factors + r, select(less(before, after), exp_negative(before - after), splat(1.0f)), lanes);
  store(state.maximum + r, after, lanes);
  return after;
}

// What to subtract from scores. As long as no key was visible, -infinity would give NaN in place of weights of 0.
ONNXFUSE_INLINE Vec shift_of(Vec maximum) { return select(less(splat(-kInfinity), maximum), maximum, splat(0.0f)); }

// Turns scores of the block (-infinity where a key is hidden) into weights, one row after the other: `count` of each
// row, whole vectors, for at most kTileRows rows.
inline void softmax_rows(int64_t rows, float* scores, int64_t scores_row, int64_t count, RowState state) {
  // Each step for all rows before the next, so that they do not wait for their own maximum.
  float tops[kTileRows];
  for (int64_t r = 0; r < rows; ++r) {
    Vec top = splat(-kInfinity);
    for (int64_t j = 0; j < count; j += kLanes) top = max(load(scores + r * scores_row + j), top);
    tops[r] = largest(top);
  }
  for_lanes(rows, [&](int64_t r, auto lanes) { update_maximum(state, r, load(tops + r, lanes), lanes); });
  for (int64_t r = 0; r < rows; ++r, scores += scores_row) {
    const Vec shift = shift_of(splat(state.maximum[r]));
    Vec total = splat(0.0f);
    for (int64_t j = 0; j < count; j += kLanes) {
      const Vec weight = exp_negative(load(scores + j) - shift);
      store(scores + j, weight);
      total = total + weight;
    }
    state.sums[r] = state.sums[r] * state.factors[r] + sum(total);
  }
}

// The same for scores that stand as [keys, rows]: `count` keys, some whole vectors of rows.
template <int kVectors = kTileVectors>
void softmax_columns(int64_t vectors, float* scores, int64_t scores_row, int64_t count, RowState state) {
  if constexpr (kVectors > 1) {
    if (vectors < kVectors) return softmax_columns<kVectors - 1>(vectors, scores, scores_row, count, state);
  }
  Vec shifts[kVectors], totals[kVectors];
  for (Vec& top : shifts) top = splat(-kInfinity);
  for (int64_t i = 0; i < count; ++i) {
    for (int v = 0; v < kVectors; ++v) shifts[v] = max(load(scores + i * scores_row + v * kLanes), shifts[v]);
  }
  for (int v = 0; v < kVectors; ++v) {
    shifts[v] = shift_of(update_maximum(state, v * kLanes, shifts[v], All{}));
    totals[v] = load(state.sums + v * kLanes) * load(state.factors + v * kLanes);
  }
  for (int64_t i = 0; i < count; ++i, scores += scores_row) {
    for (int v = 0; v < kVectors; ++v) {
      const Vec weight = exp_negative(load(scores + v * kLanes) - shifts[v]);
      store(scores + v * kLanes, weight);
      totals[v] = totals[v] + weight;
    }
  }
  for (int v = 0; v < kVectors; ++v) store(state.sums + v * kLanes, totals[v]);
}
