// The online softmax: one row of scores against one block of keys. Included by attention_kernel.h.

inline constexpr float kInfinity = __builtin_inff();

// e^x for x <= 0, relative error below 2e-7; exactly 0 below -87.3, where results become subnormal and slow to compute
// with; NaN for NaN.
ONNXFUSE_INLINE Vec exp_negative(Vec x) {
  const Vec lowest = splat(-87.3f), log2_e = splat(1.44269504f);
  const Vec clamped = max(lowest, x);
  const Vec n = round(clamped * log2_e);
  const Vec f = fma(clamped, log2_e, splat(0.0f) - n);
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

// Turns `count` scores (whole vectors, -infinity where a key is hidden) into weights exp(score - maximum), where
// `maximum` becomes the largest score met so far and `sums` the sum of all weights, lane by lane. Returns the factor
// for what was summed with earlier weights.
inline float softmax_step(float* scores, int64_t count, float* maximum, float* sums) {
  Vec top = splat(-kInfinity);
  for (int64_t j = 0; j < count; j += kLanes) top = max(load(scores + j), top);
  const float before = *maximum;
  *maximum = std::max(before, largest(top));
  // As long as no key was visible, a shift by -infinity would give NaN in place of weights of 0.
  const Vec shift = splat(*maximum == -kInfinity ? 0.0f : *maximum);
  const Vec factor = *maximum == before ? splat(1.0f) : exp_negative(splat(before) - shift);
  Vec sum = load(sums) * factor;
  for (int64_t j = 0; j < count; j += kLanes) {
    const Vec weight = exp_negative(load(scores + j) - shift);
    store(scores + j, weight);
    sum = sum + weight;
  }
  store(sums, sum);
  return largest(factor);
}
