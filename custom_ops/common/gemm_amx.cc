// A block is multiplied slice by slice: kSliceBytes of a panel are converted to the form that AMX wants, in the
// first-level cache, and multiplied by all tiles of A, which stream from the second-level cache in the order in which
// they lie there. A tile is 32 rows by the 32 columns of a panel: four registers of sums. The conversion takes some 7
// cycles for 32 weights, which 32 rows multiply in 192 cycles (float32) or 32 (bfloat16).
//
// Up to 16 rows share no weights: those are converted a step ahead of the products instead, a panel at a time, and both
// parts of up to 8 rows fit in one register. That leaves the speed to the memory.
#include "common/gemm_amx.h"

#include "common/simd_target.h"

#if ONNXFUSE_HAS_AMX

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,f16c,amx-tile,amx-bf16"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,f16c,amx-tile,amx-bf16")
#endif

namespace onnxfuse::amx {
namespace {

constexpr int64_t kTileRows = 32;
constexpr int64_t kFewRows = 16;                  // that one register holds
constexpr int64_t kStep = 32;                     // of K: what one instruction sums over
constexpr int64_t kRegisterBytes = 1024;          // 16 rows of 32 bfloat16
constexpr int64_t kActivationBytes = 768 * 1024;  // of A that the second-level cache holds beside the sums

// Register numbers are immediates: 0..3 are the sums (rows 0-15 and 16-31 by columns 0-15 and 16-31), 4 and 5 the rows
// of A, 6 and 7 the columns of W.
struct __attribute__((packed)) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};

  TileConfig() = default;
  explicit TileConfig(int64_t rows_of_a) { std::fill_n(rows, 6, static_cast<uint8_t>(rows_of_a)); }
};

int64_t steps_of(int64_t depth) { return (depth + kStep - 1) / kStep; }

template <typename W>
constexpr int kPartsOf = std::is_same_v<W, BFloat16> ? 1 : 2;

// Numbers as float32, zeros where the mask has none.
inline __m512 load(const float* p, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, p); }
inline __m512 load(const Half* p, __mmask16 mask) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p)); }
inline __m512 load(const BFloat16* p, __mmask16 mask) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16));
}

inline __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>((1u << std::clamp<int64_t>(n, 0, 16)) - 1); }

// Each float rounded to the nearest bfloat16; NaN stays NaN.
inline __m512 rounded(__m512 x) {
  const __m512i half = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
  const __m512i bits = _mm512_and_si512(half, _mm512_set1_epi32(-0x10000));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_castsi512_ps(_mm512_mask_mov_epi32(bits, is_nan, _mm512_set1_epi32(0x7fc00000)));
}

// What is left of x when its rounded value is taken off: exact, and half as long for every part of a number (16 of its
// 24 bits are 8 + 8). Nothing is left of a part that is infinite or NaN.
inline __m512 remainder(__m512 x, __m512 part) {
  constexpr int kNanOrInfinity = 0x99;
  return _mm512_maskz_sub_ps(_knot_mask16(_mm512_fpclass_ps_mask(part, kNanOrInfinity)), x, part);
}

// Rows of A: each number as the sum of `parts` bfloat16.
template <typename T>
void write_rows(const TileLayout& layout, const TileSource& from, char* tiles) {
  const int64_t steps = steps_of(layout.depth);
  for (int64_t row = from.first_row; row < from.first_row + from.rows; ++row) {
    const int64_t part_bytes = layout.tile_rows * 64;
    char* out = tiles + (row / layout.tile_rows * steps + from.first_panel) * layout.parts * part_bytes +
                row % layout.tile_rows * 64;
    const T* in = static_cast<const T*>(from.data) + (row - from.first_row) * from.row_stride;
    for (int64_t i = 0; i < from.panels; ++i, in += from.panel_stride) {
      const int64_t count = layout.depth - (from.first_panel + i) * kStep;
      __m512 low = load(in, first_lanes(count)), high = load(in + (count > 16 ? 16 : 0), first_lanes(count - 16));
      for (int64_t part = 0; part < layout.parts; ++part, out += part_bytes) {
        const __m512 l = rounded(low), h = rounded(high);
        const __m256i bits[2] = {_mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(l), 16)),
                                 _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(h), 16))};
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), bits[0]);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out) + 1, bits[1]);
        low = remainder(low, l);
        high = remainder(high, h);
      }
    }
  }
}

// Two rows of a panel for AMX, which wants the numbers of a column side by side: [parts][2] times 16 pairs, a register
// apart. The masks tell which columns there are; the others become zeros.
inline void convert_pair(const BFloat16* even, __mmask32 even_mask, const BFloat16* odd, __mmask32 odd_mask, char* to) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                       5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const __m512i e = _mm512_maskz_loadu_epi16(even_mask, even), o = _mm512_maskz_loadu_epi16(odd_mask, odd);
  _mm512_storeu_si512(to, _mm512_permutex2var_epi16(e, low, o));
  _mm512_storeu_si512(to + kRegisterBytes, _mm512_permutex2var_epi16(e, high, o));
}

// 16 numbers of each of two rows, as two parts.
inline void store_pairs(__m512 even, __m512 odd, char* to) {
  for (int part = 0; part < 2; ++part) {
    const __m512 lower = rounded(even), upper = rounded(odd);
    _mm512_storeu_si512(to + 2 * part * kRegisterBytes,
                        _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(lower), 16), _mm512_castps_si512(upper)));
    even = remainder(even, lower);
    odd = remainder(odd, upper);
  }
}

inline void convert_pair(const Half* even, __mmask32 even_mask, const Half* odd, __mmask32 odd_mask, char* to) {
  for (int half = 0; half < 2; ++half, to += kRegisterBytes) {
    const __m512 e = load(even + 16 * half, static_cast<__mmask16>(even_mask >> 16 * half));
    const __m512 o = load(odd + 16 * half, static_cast<__mmask16>(odd_mask >> 16 * half));
    store_pairs(e, o, to);
  }
}

// Converts 32 rows of a panel: [parts][2][16][16][2]. Rows from `depth` and columns from `columns` on become zeros.
template <typename W>
void convert_step(const W* b, int64_t stride, int64_t depth, int64_t columns, char* to) {
  const __mmask32 mask = columns >= kPanel ? ~0u : (1u << columns) - 1;
  for (int64_t k = 0; k < kStep; k += 2, b += 2 * stride, to += 64)
    convert_pair(b, k < depth ? mask : 0, b + stride, k + 1 < depth ? mask : 0, to);
}

// Of int8, all of whose products with their scales have two parts.
void convert_step(const int8_t* b, const BFloat16* scales, char* to) {
  static_assert(kStep == kScaledRows);
  for (int half = 0; half < 2; ++half, b += 64, to += kRegisterBytes) {
    const __m512 scale = load(scales + 16 * half, 0xffff);
    for (int64_t k = 0; k < kStep; k += 4) {
      const __m512i numbers = _mm512_loadu_si512(b + k * kPanel);
      const auto row = [&](unsigned i) {
        const __m512i number = _mm512_srai_epi32(_mm512_slli_epi32(numbers, 24 - 8 * i), 24);
        return _mm512_mul_ps(_mm512_cvtepi32_ps(number), scale);
      };
      store_pairs(row(0), row(1), to + k * 32);
      store_pairs(row(2), row(3), to + k * 32 + 64);
    }
  }
}

// As convert_step for few rows, except that of each eight columns a register has four: those that instructions for
// parts of 128 bits leave side by side. If `ahead`, weights are in order in memory, and those 32 KB on are prefetched
// in eight streams.
inline void unpack_step(const BFloat16* b, int64_t stride, int64_t depth, int64_t columns, bool ahead, char* to) {
  constexpr uintptr_t kPage = 4096, kStreams = 8, kSlice = kStreams * kPage;
  const uintptr_t at = reinterpret_cast<uintptr_t>(b), slice = at / kSlice * kSlice;
  const char* next = ahead ? reinterpret_cast<const char*>(slice + kSlice + (at - slice) / kStreams) : to;
  const uintptr_t page = ahead ? kPage : 0;
  const __mmask32 mask = columns >= kPanel ? ~0u : (1u << columns) - 1;
  const bool whole = columns >= kPanel && depth >= kStep;
  for (int64_t k = 0; k < kStep; k += 2, b += 2 * stride, to += 64) {
    __builtin_prefetch(next + k / 8 * 64 + k % 8 * page, 0, 2);
    __builtin_prefetch(next + k / 8 * 64 + (k % 8 + 1) * page, 0, 2);
    const __m512i e = whole ? _mm512_loadu_si512(b) : _mm512_maskz_loadu_epi16(k < depth ? mask : 0, b);
    const __m512i o =
        whole ? _mm512_loadu_si512(b + stride) : _mm512_maskz_loadu_epi16(k + 1 < depth ? mask : 0, b + stride);
    _mm512_storeu_si512(to, _mm512_unpacklo_epi16(e, o));
    _mm512_storeu_si512(to + kRegisterBytes, _mm512_unpackhi_epi16(e, o));
  }
}

// Prefetches a slice in pieces: several streams, 4 KB apart, because one stream leaves memory bandwidth unused.
class Prefetcher {
 public:
  Prefetcher(const void* data, int64_t bytes, int64_t pieces)
      : next_(static_cast<const char*>(data)), bytes_(bytes), lines_((kPage / 64 + pieces - 1) / pieces) {}

  void piece() {
    for (int64_t line = 0; line < lines_ && done_ < kPage; ++line, done_ += 64) {
      for (int64_t page = 0; page < bytes_; page += kPage) __builtin_prefetch(next_ + page + done_, 0, 2);
    }
  }

 private:
  static constexpr int64_t kPage = 4096;
  const char* next_;
  int64_t bytes_, lines_, done_ = 0;
};

// c[32, 32] += or = a @ b over `steps` steps of K; only 16 rows if not `high`.
template <int kPartsA, int kPartsB, bool kHigh>
void multiply_tile(const char* a, const char* b, int64_t steps, float* c, bool add, Prefetcher& prefetcher) {
  constexpr int kRow = kPanel * sizeof(float);
  if (add) {
    _tile_loadd(0, c, kRow);
    _tile_loadd(1, c + 16, kRow);
    if constexpr (kHigh) {
      _tile_loadd(2, c + 16 * kPanel, kRow);
      _tile_loadd(3, c + 16 * kPanel + 16, kRow);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t step = 0; step < steps; ++step) {
    prefetcher.piece();
    for (int i = 0; i < kPartsA; ++i) {
      _tile_loadd(4, a + 2 * i * kRegisterBytes, 64);
      if constexpr (kHigh) _tile_loadd(5, a + (2 * i + 1) * kRegisterBytes, 64);
      for (int j = 0; j < kPartsB && i + j < 2; ++j) {
        _tile_loadd(6, b + 2 * j * kRegisterBytes, 64);
        _tile_loadd(7, b + (2 * j + 1) * kRegisterBytes, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (kHigh) {
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
      }
    }
    a += 2 * kPartsA * kRegisterBytes;
    b += 2 * kPartsB * kRegisterBytes;
  }
  _tile_stored(0, c, kRow);
  _tile_stored(1, c + 16, kRow);
  if constexpr (kHigh) {
    _tile_stored(2, c + 16 * kPanel, kRow);
    _tile_stored(3, c + 16 * kPanel + 16, kRow);
  }
}

template <int kPartsA, typename W>
void multiply_block(const TileLayout& layout, const char* a, const Weight* weights, int64_t count,
                    const GemmBlock& block, char* scratch) {
  constexpr int kPartsB = kPartsOf<W>;
  constexpr int64_t kStepBytes = 2 * kPartsB * kRegisterBytes;
  constexpr int64_t kSliceSteps = kScratchBytes / kStepBytes / 4 * 4;
  const int64_t depth = layout.depth, steps = steps_of(depth), slices = (steps + kSliceSteps - 1) / kSliceSteps;
  const int64_t a_step_bytes = 2 * kPartsA * kRegisterBytes, a_tile_bytes = steps * a_step_bytes;
  const int64_t group = std::clamp<int64_t>(kActivationBytes / (block.tiles * kSliceSteps * a_step_bytes), 1, slices);
  for (int64_t first = 0; first < slices; first += group) {
    const int64_t grouped = std::min(group, slices - first), items = count * block.panels * grouped;
    // Item i is slice i % grouped of panel i / grouped % panels of the weight that is left.
    const auto source = [&](int64_t i) {
      const Weight& weight = weights[i / grouped / block.panels];
      const int64_t panel = block.first_panel + i / grouped % block.panels,
                    k = (first + i % grouped) * kSliceSteps * kStep;
      return static_cast<const W*>(weight.data) +
             (weight.packed ? (panel * depth + k) * kPanel : k * weight.columns + panel * kPanel);
    };
    for (int64_t i = 0; i < items; ++i) {
      const Weight& weight = weights[i / grouped / block.panels];
      const int64_t panel = block.first_panel + i / grouped % block.panels, slice = first + i % grouped;
      const int64_t first_step = slice * kSliceSteps, slice_steps = std::min(kSliceSteps, steps - first_step);
      const int64_t stride = weight.packed ? kPanel : weight.columns;
      const W* b = source(i);
      const bool more = weight.packed && i + 1 < items;
      Prefetcher prefetcher(source(more ? i + 1 : i),
                            more ? slice_steps * kStep * kPanel * static_cast<int64_t>(sizeof(W)) : 0,
                            (1 + block.tiles) * slice_steps);
      for (int64_t s = 0; s < slice_steps; ++s) {
        prefetcher.piece();
        const W* const from = b + s * kStep * stride;
        char* const to = scratch + s * kStepBytes;
        if constexpr (std::is_same_v<W, int8_t>)
          convert_step(from, weight.scales + (panel * steps + first_step + s) * kPanel, to);
        else
          convert_step(from, stride, depth - (first_step + s) * kStep, weight.columns - panel * kPanel, to);
      }
      float* sums = block.sums + i / grouped * block.row_capacity * kPanel;
      for (int64_t tile = 0; tile < block.tiles; ++tile, sums += kTileRows * kPanel) {
        const char* rows = a + (block.first_tile + tile) * a_tile_bytes + first_step * a_step_bytes;
        if (block.rows - tile * kTileRows > 16)
          multiply_tile<kPartsA, kPartsB, true>(rows, scratch, slice_steps, sums, slice > 0, prefetcher);
        else
          multiply_tile<kPartsA, kPartsB, false>(rows, scratch, slice_steps, sums, slice > 0, prefetcher);
      }
    }
  }
}

// Of few rows, all of K in one go: the sums stay in registers, and a step is converted while earlier ones are
// multiplied. A step of A, [parts][rows][32], is one register or, where that is too small, one for each part.
template <int kRegisters>
void multiply_few_rows(const TileLayout& layout, const char* a, const Weight* weights, int64_t count,
                       const GemmBlock& block, char* scratch) {
  constexpr int64_t kConverted = 4, kStepBytes = 2 * kRegisterBytes;  // steps of W that lie there converted
  const int64_t rows = layout.rows, steps = steps_of(layout.depth), part_bytes = rows * 64;
  for (int64_t i = 0; i < count * block.panels; ++i) {
    const Weight& weight = weights[i / block.panels];
    const int64_t panel = block.first_panel + i % block.panels, stride = weight.packed ? kPanel : weight.columns;
    const BFloat16* b = static_cast<const BFloat16*>(weight.data) + panel * kPanel * (weight.packed ? layout.depth : 1);
    const auto convert = [&](int64_t step) {
      unpack_step(b + step * kStep * stride, stride, layout.depth - step * kStep, weight.columns - panel * kPanel,
                  weight.packed, scratch + step % kConverted * kStepBytes);
    };
    for (int64_t step = 0; step < std::min(kConverted - 1, steps); ++step) convert(step);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    const char* from = a;
    for (int64_t step = 0; step < steps; ++step, from += layout.parts * part_bytes) {
      if (step + kConverted - 1 < steps) convert(step + kConverted - 1);
      const char* converted = scratch + step % kConverted * kStepBytes;
      _tile_loadd(6, converted, 64);
      _tile_loadd(7, converted + kRegisterBytes, 64);
      _tile_loadd(4, from, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (kRegisters == 2) {
        _tile_loadd(5, from + part_bytes, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    // Registers 0 and 1 hold the sums of the first part, those of the second are below or in registers 2 and 3.
    alignas(64) float found[2][2 * kFewRows][16];
    const int64_t second = kRegisters == 2 ? kFewRows : rows;
    _tile_stored(0, found[0], 64);
    _tile_stored(1, found[1], 64);
    if constexpr (kRegisters == 2) {
      _tile_stored(2, found[0][kFewRows], 64);
      _tile_stored(3, found[1][kFewRows], 64);
    }
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    float* sums = block.sums + i * block.row_capacity * kPanel;
    for (int64_t row = 0; row < rows; ++row, sums += kPanel) {
      __m512 left = _mm512_load_ps(found[0][row]), right = _mm512_load_ps(found[1][row]);
      if (layout.parts == 2) {
        left = _mm512_add_ps(left, _mm512_load_ps(found[0][second + row]));
        right = _mm512_add_ps(right, _mm512_load_ps(found[1][second + row]));
      }
      _mm512_storeu_ps(sums, _mm512_permutex2var_ps(left, low, right));
      _mm512_storeu_ps(sums + 16, _mm512_permutex2var_ps(left, high, right));
    }
  }
}

template <typename W>
void multiply_by(const TileLayout& layout, const char* a, const Weight* weights, int64_t count, const GemmBlock& block,
                 char* scratch) {
  if (layout.parts == 1)
    multiply_block<1, W>(layout, a, weights, count, block, scratch);
  else
    multiply_block<2, W>(layout, a, weights, count, block, scratch);
}

}  // namespace

bool wanted(int64_t rows, DType weight) {
  if (simd_target() != SimdTarget::kAmx) return false;
  // Of float32, six products of parts would be needed: no faster than AVX-512 wherever AMX runs at a reduced rate.
  // Weights of two parts take three, and are costly to convert.
  const bool two_parts = weight == DType::kFloat16 || weight == DType::kInt8;
  return (weight == DType::kBFloat16 && rows >= 2) || (two_parts && rows >= 32);
}

void cut(TileLayout& layout, DType a) {
  layout.form = TileLayout::Form::kAmx;
  layout.parts = a == DType::kBFloat16 ? 1 : 2;
  layout.tile_rows = layout.rows <= kFewRows ? layout.rows : kTileRows;
  layout.tiles = layout.rows == 0 ? 0 : (layout.rows + layout.tile_rows - 1) / layout.tile_rows;
}

void write_tiles(const TileLayout& layout, const TileSource& from, void* tiles) {
  char* out = static_cast<char*>(tiles);
  switch (from.dtype) {
    case DType::kFloat16:
      return write_rows<Half>(layout, from, out);
    case DType::kBFloat16:
      return write_rows<BFloat16>(layout, from, out);
    default:
      return write_rows<float>(layout, from, out);
  }
}

void multiply(const TileLayout& layout, const void* a, const Weight* weights, int64_t count, const GemmBlock& block,
              void* scratch) {
  const bool few = layout.rows <= kFewRows, in_one = layout.parts * layout.rows <= kFewRows;
  const TileConfig config = few ? TileConfig(in_one ? layout.parts * layout.rows : layout.rows) : TileConfig();
  _tile_loadconfig(&config);
  const char* rows = static_cast<const char*>(a);
  char* converted = static_cast<char*>(scratch);
  if (few && in_one)
    multiply_few_rows<1>(layout, rows, weights, count, block, converted);
  else if (few)
    multiply_few_rows<2>(layout, rows, weights, count, block, converted);
  else if (weights->dtype == DType::kBFloat16)
    multiply_by<BFloat16>(layout, rows, weights, count, block, converted);
  else if (weights->dtype == DType::kInt8)
    multiply_by<int8_t>(layout, rows, weights, count, block, converted);
  else
    multiply_by<Half>(layout, rows, weights, count, block, converted);
  _tile_release();
}

}  // namespace onnxfuse::amx

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

namespace onnxfuse::amx {

bool wanted(int64_t, DType) { return false; }
void cut(TileLayout&, DType) {}
void write_tiles(const TileLayout&, const TileSource&, void*) {}
void multiply(const TileLayout&, const void*, const Weight*, int64_t, const GemmBlock&, void*) {}

}  // namespace onnxfuse::amx

#endif
