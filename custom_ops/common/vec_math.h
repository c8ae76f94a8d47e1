// Loops and functions on Vec that are the same for every target. Included by each_target.h.

// Calls body(i, lanes) for i = 0, kLanes, 2 kLanes ... below n: `lanes` is All{} for whole vectors and a count for what
// is left at the end, to be passed on to load and store. The body is written once and compiled for both.
template <class Body>
ONNXFUSE_INLINE void for_lanes(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, All{});
  if (i < n) body(i, n - i);
}

// e^x. Max error 0.94 ulp, 1.21 where fma rounds twice (over a third of all floats), denormal results included; 0 below
// -104, infinity above 88.73, NaN for NaN.
ONNXFUSE_INLINE Vec exp(Vec x) {
  x = min(splat(89.0f), max(splat(-104.0f), x));
  const Vec n = round(x * splat(1.44269504f));
  // r = x - n ln 2 in [-ln 2 / 2, ln 2 / 2]; ln 2 in two parts, the first short enough for n times it to be exact.
  const Vec r = fma(n, splat(-1.42860677e-6f), fma(n, splat(-0.693145752f), x));
  // The Taylor series to r^7: the remainder is below 2^-27 of the result.
  Vec p = splat(1.0f / 5040);
  p = fma(p, r, splat(1.0f / 720));
  p = fma(p, r, splat(1.0f / 120));
  p = fma(p, r, splat(1.0f / 24));
  p = fma(p, r, splat(1.0f / 6));
  p = fma(p, r, splat(0.5f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  return scale_by_power_of_two(p, n);
}

ONNXFUSE_INLINE Vec sigmoid(Vec x) { return splat(1) / (splat(1) + exp(splat(0) - x)); }
ONNXFUSE_INLINE Vec silu(Vec x) { return x / (splat(1) + exp(splat(0) - x)); }  // x * sigmoid(x)

// 2 n elements p[0], p[1] ... of n pairs: even holds p[0], p[2] ..., odd holds p[1], p[3] ...
template <typename T>
ONNXFUSE_INLINE Pair load_pairs(const T* p, All = {}) {
  return deinterleave(load(p), load(p + kLanes));
}
template <typename T>
ONNXFUSE_INLINE Pair load_pairs(const T* p, int64_t n) {
  return deinterleave(load(p, std::min(2 * n, kLanes)), load(p + kLanes, std::max(2 * n - kLanes, int64_t{0})));
}
template <typename T>
ONNXFUSE_INLINE void store_pairs(T* p, Pair a, All = {}) {
  const Pair b = interleave(a);
  store(p, b.even);
  store(p + kLanes, b.odd);
}
template <typename T>
ONNXFUSE_INLINE void store_pairs(T* p, Pair a, int64_t n) {
  const Pair b = interleave(a);
  store(p, b.even, std::min(2 * n, kLanes));
  store(p + kLanes, b.odd, std::max(2 * n - kLanes, int64_t{0}));
}
