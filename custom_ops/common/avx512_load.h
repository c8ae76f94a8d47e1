// Numbers as float32 in a vector of AVX-512, zeros where the mask has none. Included where that target is compiled.

inline __m512 load(const float* p, __mmask16 mask = 0xffff) { return _mm512_maskz_loadu_ps(mask, p); }
inline __m512 load(const Half* p, __mmask16 mask = 0xffff) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
}
inline __m512 load(const BFloat16* p, __mmask16 mask = 0xffff) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16));
}
