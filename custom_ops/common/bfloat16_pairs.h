// Two rows of a panel of bfloat16, brought together in pairs as the instructions want them that add up two products or
// more. Included by gemm_amx.cc and gemm_bf16.cc.

constexpr int kPairs = kStep / 2;  // of rows, of a step

// Of each eight columns either register has four: those that instructions for parts of 128 bits leave side by side.
// `put_in_order` gives the sums their order.
struct Pairs {
  __m512i left, right;
};

ONNXFUSE_INLINE Pairs pairs_of(__m512i even, __m512i odd) {
  return {_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd)};
}

ONNXFUSE_INLINE void put_in_order(__m512& left, __m512& right) {
  const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  const __m512 first = _mm512_permutex2var_ps(left, low, right);
  right = _mm512_permutex2var_ps(left, high, right);
  left = first;
}
