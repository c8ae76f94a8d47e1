// The online softmax: some rows of scores against one block of keys. Included by attention_kernel.h.

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

inline float row_maximum(const float* scores, int64_t count) {
  Vec top = splat(-kInfinity);
  for (int64_t j = 0; j < count; j += kLanes) top = max(load(scores + j), top);
  return largest(top);
}

// Turns `count` scores of each row (whole vectors, at most kTileRows rows; -infinity where a key is hidden) into
// weights exp(score - maximum). `maximum` becomes the largest score that the row has met so far, `sums` the sum of all
// its weights lane by lane, and `factors` what must be multiplied with sums over earlier weights.
inline void softmax_step(int64_t rows, float* scores, int64_t scores_row, int64_t count, float* maximum, float* sums,
                         int64_t sums_row, float* factors) {
  // Rows wait for nothing but their own maximum when each of these steps is taken for all of them.
  float tops[kTileRows];
  for (int64_t r = 0; r < rows; ++r) tops[r] = row_maximum(scores + r * scores_row, count);
  for_lanes(rows, [&](int64_t r, auto lanes) {
    const Vec before = load(maximum + r, lanes), after = max(load(tops + r, lanes), before);
    store(factors + r, select(less(before, after), exp_negative(before - after), splat(1.0f)), lanes);
    store(maximum + r, after, lanes);
  });
  for (int64_t r = 0; r < rows; ++r, scores += scores_row, sums += sums_row) {
    // As long as no key was visible, a shift by -infinity would give NaN in place of weights of 0.
    const Vec shift = splat(maximum[r] == -kInfinity ? 0.0f : maximum[r]);
    Vec sum = load(sums) * splat(factors[r]);
    for (int64_t j = 0; j < count; j += kLanes) {
      const Vec weight = exp_negative(load(scores + j) - shift);
      store(scores + j, weight);
      sum = sum + weight;
    }
    store(sums, sum);
  }
}
