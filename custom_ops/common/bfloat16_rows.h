// Activations as bfloat16: rows of A in steps of 32 numbers, each number as one part or the sum of several, see
// gemm.h. Included by gemm_amx.cc and gemm_bf16.cc.

constexpr int64_t kStep = 32;  // of K

inline int64_t steps_of(int64_t depth) { return (depth + kStep - 1) / kStep; }

inline __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << std::clamp<int64_t>(n, 0, 16)) - 1); }

// Whether all are numbers whose nearest bfloat16 is finite.
inline bool ordinary(__m512 x) {
  return _mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(0x1.fep127f), _CMP_LE_OQ) == 0xffff;
}

// Each float rounded to the nearest bfloat16, or towards zero where that is infinite; NaN stays NaN.
template <bool kOrdinary>
ONNXFUSE_INLINE __m512 rounded(__m512 x) {
  constexpr int kNan = 0x81, kInfinity = 0x18;
  const __m512i bits = _mm512_castps_si512(x), upper = _mm512_set1_epi32(-0x10000);
  const __m512 nearest =
      _mm512_castsi512_ps(_mm512_and_si512(_mm512_add_epi32(bits, _mm512_set1_epi32(0x8000)), upper));
  if constexpr (kOrdinary) return nearest;
  const __mmask16 cut_off = _mm512_fpclass_ps_mask(nearest, kInfinity), is_nan = _mm512_fpclass_ps_mask(x, kNan);
  const __m512i whole = _mm512_mask_and_epi32(_mm512_castps_si512(nearest), cut_off, bits, upper);
  return _mm512_castsi512_ps(_mm512_mask_mov_epi32(whole, is_nan, _mm512_set1_epi32(0x7fc00000)));
}

// What is left of x when its rounded value is taken off: exact, and half as long for every part of a number (16 of its
// 24 bits are 8 + 8). Nothing is left of a part that is infinite or NaN.
template <bool kOrdinary>
ONNXFUSE_INLINE __m512 remainder(__m512 x, __m512 part) {
  if constexpr (kOrdinary) return _mm512_sub_ps(x, part);
  constexpr int kNanOrInfinity = 0x99;
  return _mm512_maskz_sub_ps(_knot_mask16(_mm512_fpclass_ps_mask(part, kNanOrInfinity)), x, part);
}

// 32 numbers, each as the sum of `parts` bfloat16.
template <bool kOrdinary>
ONNXFUSE_INLINE void write_parts(__m512 low, __m512 high, int64_t parts, int64_t part_bytes, char* out) {
  alignas(64) static constexpr auto kUpperHalves = [] {
    std::array<int16_t, 32> at{};
    for (int i = 0; i < 32; ++i) at[i] = static_cast<int16_t>(2 * i + 1);
    return at;
  }();
  for (int64_t part = 0; part < parts; ++part, out += part_bytes) {
    const __m512 l = rounded<kOrdinary>(low), h = rounded<kOrdinary>(high);
    _mm512_storeu_si512(out, _mm512_permutex2var_epi16(_mm512_castps_si512(l), _mm512_load_si512(kUpperHalves.data()),
                                                       _mm512_castps_si512(h)));
    low = remainder<kOrdinary>(low, l);
    high = remainder<kOrdinary>(high, h);
  }
}

// Rows of A: each number as the sum of `parts` bfloat16.
template <typename T>
void write_rows(const TileLayout& layout, const TileSource& from, char* tiles) {
  const int64_t steps = steps_of(layout.depth), part_bytes = layout.tile_rows * 64;
  for (int64_t row = from.first_row; row < from.first_row + from.rows; ++row) {
    char* out = tiles + (row / layout.tile_rows * steps + from.first_panel) * layout.parts * part_bytes +
                row % layout.tile_rows * 64;
    const T* in = static_cast<const T*>(from.data) + (row - from.first_row) * from.row_stride;
    for (int64_t i = 0; i < from.panels; ++i, in += from.panel_stride, out += layout.parts * part_bytes) {
      const int64_t count = layout.depth - (from.first_panel + i) * kStep;
      const __m512 low = load(in, first_lanes(count)), high = load(in + (count > 16 ? 16 : 0), first_lanes(count - 16));
      if (ordinary(low) && ordinary(high))
        write_parts<true>(low, high, layout.parts, part_bytes, out);
      else
        write_parts<false>(low, high, layout.parts, part_bytes, out);
    }
  }
}

// Rows of dtype `from.dtype`.
inline void write_rows_of_any(const TileLayout& layout, const TileSource& from, char* tiles) {
  switch (from.dtype) {
    case DType::kFloat16:
      return write_rows<Half>(layout, from, tiles);
    case DType::kBFloat16:
      return write_rows<BFloat16>(layout, from, tiles);
    default:
      return write_rows<float>(layout, from, tiles);
  }
}
