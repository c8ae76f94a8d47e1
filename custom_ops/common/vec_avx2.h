// Vec of 8 floats with AVX2, FMA and F16C. The operations mean what vec_scalar.h says. Included by each_target.h.

inline constexpr int64_t kLanes = 8;

struct Vec {
  __m256 v;
};
struct Mask {
  __m256 v;
};

struct Pair {
  Vec even, odd;
};

ONNXFUSE_INLINE Vec splat(float x) { return {_mm256_set1_ps(x)}; }
ONNXFUSE_INLINE Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
ONNXFUSE_INLINE Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
ONNXFUSE_INLINE Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
ONNXFUSE_INLINE Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
ONNXFUSE_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
ONNXFUSE_INLINE Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
ONNXFUSE_INLINE Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
ONNXFUSE_INLINE Vec sqrt(Vec a) { return {_mm256_sqrt_ps(a.v)}; }
ONNXFUSE_INLINE Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
ONNXFUSE_INLINE Vec round(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
ONNXFUSE_INLINE Mask less(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
ONNXFUSE_INLINE Vec select(Mask m, Vec a, Vec b) { return {_mm256_blendv_ps(b.v, a.v, m.v)}; }

ONNXFUSE_INLINE float sum(Vec a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
ONNXFUSE_INLINE float largest(Vec a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

ONNXFUSE_INLINE __m256 reorder_64(__m256 a) {  // the 64-bit quarters 0, 2, 1, 3
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(a), 0xd8));
}
ONNXFUSE_INLINE Pair deinterleave(Vec first, Vec second) {
  return {{reorder_64(_mm256_shuffle_ps(first.v, second.v, 0x88))},
          {reorder_64(_mm256_shuffle_ps(first.v, second.v, 0xdd))}};
}
ONNXFUSE_INLINE Pair interleave(Pair a) {
  const __m256 low = _mm256_unpacklo_ps(a.even.v, a.odd.v), high = _mm256_unpackhi_ps(a.even.v, a.odd.v);
  return {{_mm256_permute2f128_ps(low, high, 0x20)}, {_mm256_permute2f128_ps(low, high, 0x31)}};
}

ONNXFUSE_INLINE __m256 power_of_two(__m256i e) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
}
ONNXFUSE_INLINE Vec scale_by_power_of_two(Vec a, Vec n) {
  const __m256i whole = _mm256_cvtps_epi32(n.v), half = _mm256_srai_epi32(whole, 1);
  return {_mm256_mul_ps(_mm256_mul_ps(a.v, power_of_two(half)), power_of_two(_mm256_sub_epi32(whole, half)))};
}

ONNXFUSE_INLINE Vec widen(__m128i bits, Half) { return {_mm256_cvtph_ps(bits)}; }
ONNXFUSE_INLINE Vec widen(__m128i bits, BFloat16) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
}
ONNXFUSE_INLINE __m128i narrow(Vec a, Half) { return _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT); }
ONNXFUSE_INLINE __m128i narrow(Vec a, BFloat16) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i upper = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
}

// All bits set in the first n lanes.
ONNXFUSE_INLINE __m256i first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

ONNXFUSE_INLINE Vec load(const float* p, All = {}) { return {_mm256_loadu_ps(p)}; }
ONNXFUSE_INLINE Vec load(const float* p, int64_t n) { return {_mm256_maskload_ps(p, first_lanes(n))}; }
ONNXFUSE_INLINE void store(float* p, Vec a, All = {}) { _mm256_storeu_ps(p, a.v); }
ONNXFUSE_INLINE void store(float* p, Vec a, int64_t n) { _mm256_maskstore_ps(p, first_lanes(n), a.v); }

template <typename T>
ONNXFUSE_INLINE Vec load(const T* p, All = {}) {
  return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), T{});
}
template <typename T>
ONNXFUSE_INLINE Vec load(const T* p, int64_t n) {
  T lanes[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}
template <typename T>
ONNXFUSE_INLINE void store(T* p, Vec a, All = {}) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(a, T{}));
}
template <typename T>
ONNXFUSE_INLINE void store(T* p, Vec a, int64_t n) {
  T lanes[kLanes];
  store(lanes, a);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

struct Four {
  Vec each[4];
};
ONNXFUSE_INLINE Four load_fours(const int8_t* p) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const auto number = [&](int i) -> Vec {
    return {_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(bytes, 24 - 8 * i), 24))};
  };
  return {{number(0), number(1), number(2), number(3)}};
}

ONNXFUSE_INLINE void stream(float* p, Vec a) { _mm256_stream_ps(p, a.v); }
ONNXFUSE_INLINE void stream_fence() { _mm_sfence(); }

ONNXFUSE_INLINE __m256 low_pairs(__m256 a, __m256 b) {
  return _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
ONNXFUSE_INLINE __m256 high_pairs(__m256 a, __m256 b) {
  return _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}

ONNXFUSE_INLINE Vec sum_each(const Vec (&rows)[kLanes]) {
  __m256 two[4], four[2];
  for (int i = 0; i < 4; ++i) {
    const __m256 a = rows[2 * i].v, b = rows[2 * i + 1].v;
    two[i] = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  }
  for (int i = 0; i < 2; ++i) {
    const __m256 a = two[2 * i], b = two[2 * i + 1];
    four[i] = _mm256_add_ps(low_pairs(a, b), high_pairs(a, b));
  }
  return {
      _mm256_add_ps(_mm256_permute2f128_ps(four[0], four[1], 0x20), _mm256_permute2f128_ps(four[0], four[1], 0x31))};
}

ONNXFUSE_INLINE void transpose(Vec (&rows)[kLanes]) {
  __m256 two[8], four[8];
  for (int i = 0; i < 8; i += 2) {
    two[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
    two[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int half = 0; half < 2; ++half) {
      four[i + 2 * half] = low_pairs(two[i + half], two[i + 2 + half]);
      four[i + 2 * half + 1] = high_pairs(two[i + half], two[i + 2 + half]);
    }
  }
  for (int i = 0; i < 4; ++i) {
    rows[i].v = _mm256_permute2f128_ps(four[i], four[4 + i], 0x20);
    rows[4 + i].v = _mm256_permute2f128_ps(four[i], four[4 + i], 0x31);
  }
}
