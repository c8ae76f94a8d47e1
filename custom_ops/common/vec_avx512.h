// Vec of 16 floats with AVX-512 F, BW, DQ and VL. The operations mean what vec_scalar.h says. Included by
// each_target.h.

inline constexpr int64_t kLanes = 16;

struct Vec {
  __m512 v;
};
struct Mask {
  __mmask16 v;
};

struct Pair {
  Vec even, odd;
};

ONNXFUSE_INLINE Vec splat(float x) { return {_mm512_set1_ps(x)}; }
ONNXFUSE_INLINE Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
ONNXFUSE_INLINE Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
ONNXFUSE_INLINE Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
ONNXFUSE_INLINE Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
ONNXFUSE_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
ONNXFUSE_INLINE Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
ONNXFUSE_INLINE Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
ONNXFUSE_INLINE Vec sqrt(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
ONNXFUSE_INLINE Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
ONNXFUSE_INLINE Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
ONNXFUSE_INLINE Mask less(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
ONNXFUSE_INLINE Vec select(Mask m, Vec a, Vec b) { return {_mm512_mask_blend_ps(m.v, b.v, a.v)}; }
ONNXFUSE_INLINE float sum(Vec a) { return _mm512_reduce_add_ps(a.v); }
ONNXFUSE_INLINE float largest(Vec a) { return _mm512_reduce_max_ps(a.v); }
ONNXFUSE_INLINE Vec scale_by_power_of_two(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }

ONNXFUSE_INLINE Pair deinterleave(Vec first, Vec second) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  return {{_mm512_permutex2var_ps(first.v, even, second.v)}, {_mm512_permutex2var_ps(first.v, odd, second.v)}};
}
ONNXFUSE_INLINE Pair interleave(Pair a) {
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  return {{_mm512_permutex2var_ps(a.even.v, low, a.odd.v)}, {_mm512_permutex2var_ps(a.even.v, high, a.odd.v)}};
}

ONNXFUSE_INLINE Vec widen(__m256i bits, Half) { return {_mm512_cvtph_ps(bits)}; }
ONNXFUSE_INLINE Vec widen(__m256i bits, BFloat16) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
ONNXFUSE_INLINE __m256i narrow(Vec a, Half) { return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT); }
ONNXFUSE_INLINE __m256i narrow(Vec a, BFloat16) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(quiet, 16));
}

ONNXFUSE_INLINE __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

ONNXFUSE_INLINE Vec load(const float* p, All = {}) { return {_mm512_loadu_ps(p)}; }
ONNXFUSE_INLINE Vec load(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
ONNXFUSE_INLINE void store(float* p, Vec a, All = {}) { _mm512_storeu_ps(p, a.v); }
ONNXFUSE_INLINE void store(float* p, Vec a, int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }

template <typename T>
ONNXFUSE_INLINE Vec load(const T* p, All = {}) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), T{});
}
template <typename T>
ONNXFUSE_INLINE Vec load(const T* p, int64_t n) {
  return widen(_mm256_maskz_loadu_epi16(first_lanes(n), p), T{});
}
template <typename T>
ONNXFUSE_INLINE void store(T* p, Vec a, All = {}) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a, T{}));
}
template <typename T>
ONNXFUSE_INLINE void store(T* p, Vec a, int64_t n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(a, T{}));
}

struct Four {
  Vec each[4];
};
ONNXFUSE_INLINE Four load_fours(const int8_t* p) {
  const __m512i bytes = _mm512_loadu_si512(p);
  const auto number = [&](unsigned i) -> Vec {
    return {_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(bytes, 24 - 8 * i), 24))};
  };
  return {{number(0), number(1), number(2), number(3)}};
}

ONNXFUSE_INLINE void stream(float* p, Vec a) { _mm512_stream_ps(p, a.v); }
ONNXFUSE_INLINE void stream_fence() { _mm_sfence(); }

ONNXFUSE_INLINE __m512 low_pairs(__m512 a, __m512 b) {
  return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
ONNXFUSE_INLINE __m512 high_pairs(__m512 a, __m512 b) {
  return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
// The even or the odd quarters of a, then those of b.
ONNXFUSE_INLINE __m512 even_quarters(__m512 a, __m512 b) { return _mm512_shuffle_f32x4(a, b, 0x88); }
ONNXFUSE_INLINE __m512 odd_quarters(__m512 a, __m512 b) { return _mm512_shuffle_f32x4(a, b, 0xdd); }

ONNXFUSE_INLINE Vec sum_each(const Vec (&rows)[kLanes]) {
  __m512 two[8], four[4], eight[2];
  for (int i = 0; i < 8; ++i) {
    const __m512 a = rows[2 * i].v, b = rows[2 * i + 1].v;
    two[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
  for (int i = 0; i < 4; ++i) {
    const __m512 a = two[2 * i], b = two[2 * i + 1];
    four[i] = _mm512_add_ps(low_pairs(a, b), high_pairs(a, b));
  }
  for (int i = 0; i < 2; ++i) {
    const __m512 a = four[2 * i], b = four[2 * i + 1];
    eight[i] = _mm512_add_ps(even_quarters(a, b), odd_quarters(a, b));
  }
  return {_mm512_add_ps(even_quarters(eight[0], eight[1]), odd_quarters(eight[0], eight[1]))};
}

ONNXFUSE_INLINE void transpose(Vec (&rows)[kLanes]) {
  __m512 two[16], four[16];
  for (int i = 0; i < 16; i += 2) {
    two[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    two[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int half = 0; half < 2; ++half) {
      four[i + 2 * half] = low_pairs(two[i + half], two[i + 2 + half]);
      four[i + 2 * half + 1] = high_pairs(two[i + half], two[i + 2 + half]);
    }
  }
  // Quarter k of four[4 r + i] is column 4 k + i of rows 4 r .. 4 r + 3.
  for (int i = 0; i < 4; ++i) {
    const __m512 even_a = even_quarters(four[i], four[4 + i]), even_b = even_quarters(four[8 + i], four[12 + i]);
    const __m512 odd_a = odd_quarters(four[i], four[4 + i]), odd_b = odd_quarters(four[8 + i], four[12 + i]);
    rows[i].v = even_quarters(even_a, even_b);
    rows[8 + i].v = odd_quarters(even_a, even_b);
    rows[4 + i].v = even_quarters(odd_a, odd_b);
    rows[12 + i].v = odd_quarters(odd_a, odd_b);
  }
}
