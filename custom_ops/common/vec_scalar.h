// Vec of one float: the target that every machine has, and the plainest statement of what the operations mean.
// Included by each_target.h.

inline constexpr int64_t kLanes = 1;

struct Vec {
  float v;
};
struct Mask {
  bool v;
};

struct Pair {
  Vec even, odd;
};

ONNXFUSE_INLINE Vec splat(float x) { return {x}; }
ONNXFUSE_INLINE Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
ONNXFUSE_INLINE Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
ONNXFUSE_INLINE Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
ONNXFUSE_INLINE Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
ONNXFUSE_INLINE Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }  // a * b + c
ONNXFUSE_INLINE Vec min(Vec a, Vec b) { return {a.v < b.v ? a.v : b.v}; }   // b if either is a NaN
ONNXFUSE_INLINE Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }   // b if either is a NaN
ONNXFUSE_INLINE Vec sqrt(Vec a) { return {__builtin_sqrtf(a.v)}; }
ONNXFUSE_INLINE Vec abs(Vec a) { return {__builtin_fabsf(a.v)}; }
ONNXFUSE_INLINE Vec round(Vec a) { return {__builtin_nearbyintf(a.v)}; }  // to the nearest integer, ties to even
ONNXFUSE_INLINE Mask less(Vec a, Vec b) { return {a.v < b.v}; }
ONNXFUSE_INLINE Vec select(Mask m, Vec a, Vec b) { return m.v ? a : b; }  // a where m holds, else b
ONNXFUSE_INLINE float sum(Vec a) { return a.v; }                          // over the lanes
ONNXFUSE_INLINE float largest(Vec a) { return a.v; }                      // over the lanes

// The two vectors of 2 kLanes numbers in a row, split into those at even and at odd places; and back.
ONNXFUSE_INLINE Pair deinterleave(Vec first, Vec second) { return {first, second}; }
ONNXFUSE_INLINE Pair interleave(Pair a) { return a; }

// a * 2^n for integers -252 <= n <= 254, rounded once; n is given as floats. For a NaN as n, a is one, too.
ONNXFUSE_INLINE Vec scale_by_power_of_two(Vec a, Vec n) {
  const int32_t whole = n.v == n.v ? static_cast<int32_t>(n.v) : 0, half = whole >> 1;
  const auto power = [](int32_t e) { return bit_cast<float>(static_cast<uint32_t>(e + 127) << 23); };
  return {a.v * power(half) * power(whole - half)};
}

// Loads convert to float, stores round to the nearest. With a count n <= kLanes only n elements are touched and the
// other lanes load as 0.
template <typename T>
ONNXFUSE_INLINE Vec load(const T* p, All = {}) {
  return {to_float(*p)};
}
template <typename T>
ONNXFUSE_INLINE Vec load(const T* p, int64_t n) {
  return {n > 0 ? to_float(*p) : 0.0f};
}
template <typename T>
ONNXFUSE_INLINE void store(T* p, Vec a, All = {}) {
  *p = from_float<T>(a.v);
}
template <typename T>
ONNXFUSE_INLINE void store(T* p, Vec a, int64_t n) {
  if (n > 0) *p = from_float<T>(a.v);
}

struct Four {
  Vec each[4];
};
// each[i] lane j is number i of the j-th four.
ONNXFUSE_INLINE Four load_fours(const int8_t* p) {
  return {{{to_float(p[0])}, {to_float(p[1])}, {to_float(p[2])}, {to_float(p[3])}}};
}

// Stores kLanes floats, at an address that is a multiple of their size, past the caches: for what is not soon read
// again. Another thread sees them after stream_fence().
ONNXFUSE_INLINE void stream(float* p, Vec a) { *p = a.v; }
ONNXFUSE_INLINE void stream_fence() {}

// Lane i of the result is the sum over the lanes of rows[i].
ONNXFUSE_INLINE Vec sum_each(const Vec (&rows)[kLanes]) { return rows[0]; }

// rows[i] lane j becomes rows[j] lane i.
ONNXFUSE_INLINE void transpose(Vec (&)[kLanes]) {}
