// Of 32 numbers of a row, as many as share a scale of the weights, the largest becomes 32639, and each the integer
// 256 high + low next to it; both parts are int8. So all products and their sums over those 32 are exact, and an
// activation is off by at most 2^-16 of the largest beside it.
//
// The instruction takes unsigned numbers by signed ones: weights get 128 more, by which the sum is too large by 128
// times the sum of the activations.
#include "common/gemm_vnni.h"

#include "common/simd_target.h"

#if defined(__x86_64__)

#include <array>
#include <cstring>
#include <limits>
#include <utility>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")
#endif

#define ONNXFUSE_UNROLL _Pragma("GCC unroll 32")

namespace onnxfuse::vnni {
namespace {

constexpr int64_t kMostRows = 31;  // beyond, the other ways are quicker
constexpr int64_t kTileRows = 4;   // whose sums fit the registers
constexpr int64_t kStep = kScaledRows;

// kStep numbers of a row: scale * (256 parts[0] + parts[1]).
struct Numbers {
  int8_t parts[2][kStep];  // high, low
  float scale;
  int32_t offset;  // 128 times the sum of the integers
};

int64_t steps_of(const TileLayout& layout) { return layout.depth / kStep; }

// tiles: [tiles][K/32][tile_rows]
int64_t place(const TileLayout& layout, int64_t row, int64_t step) {
  return (row / layout.tile_rows * steps_of(layout) + step) * layout.tile_rows + row % layout.tile_rows;
}

inline __m512 load(const float* p) { return _mm512_loadu_ps(p); }
inline __m512 load(const Half* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline __m512 load(const BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

template <typename T>
Numbers numbers_of(const T* x) {
  constexpr float kLargest = 127 * 256 + 127;
  constexpr int kNanOrInfinity = 0x99;
  const __m512 x0 = load(x), x1 = load(x + 16);
  const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(x0), _mm512_abs_ps(x1)));
  Numbers numbers{};
  if ((_mm512_fpclass_ps_mask(x0, kNanOrInfinity) | _mm512_fpclass_ps_mask(x1, kNanOrInfinity)) != 0) {
    numbers.scale = std::numeric_limits<float>::quiet_NaN();
    return numbers;
  }
  numbers.scale = largest / kLargest;
  if (numbers.scale == 0) return numbers;
  __m512i sum = _mm512_setzero_si512();
  for (int half = 0; half < 2; ++half) {
    // The scale may be a subnormal number, and be rounded down a lot.
    const __m512 scaled = _mm512_div_ps(half == 0 ? x0 : x1, _mm512_set1_ps(numbers.scale));
    const __m512 within = _mm512_max_ps(_mm512_min_ps(scaled, _mm512_set1_ps(kLargest)), _mm512_set1_ps(-kLargest));
    const __m512i integers = _mm512_cvtps_epi32(within);
    const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(integers, _mm512_set1_epi32(128)), 8);
    const auto to = [&](int part) { return reinterpret_cast<__m128i*>(numbers.parts[part] + 16 * half); };
    _mm_storeu_si128(to(0), _mm512_cvtepi32_epi8(high));
    _mm_storeu_si128(to(1), _mm512_cvtepi32_epi8(integers));
    sum = _mm512_add_epi32(sum, integers);
  }
  numbers.offset = 128 * _mm512_reduce_add_epi32(sum);
  return numbers;
}

template <typename T>
void write_rows(const TileLayout& layout, const TileSource& from, Numbers* tiles) {
  for (int64_t row = from.first_row; row < from.first_row + from.rows; ++row) {
    const T* in = static_cast<const T*>(from.data) + (row - from.first_row) * from.row_stride;
    for (int64_t i = 0; i < from.panels; ++i, in += from.panel_stride)
      tiles[place(layout, row, from.first_panel + i)] = numbers_of(in);
  }
}

// Four numbers as the instruction takes them, for all columns.
inline __m512i four(const int8_t* p) {
  int32_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return _mm512_set1_epi32(bits);
}

// sums[kRows][kPanel] = a @ a panel, over all of K. The weights 32 KB on are prefetched, in eight streams.
template <int kRows>
void multiply_tile(const Numbers* a, int64_t tile_rows, const int8_t* b, const BFloat16* scales, int64_t steps,
                   float* sums) {
  constexpr uintptr_t kPage = 4096, kStreams = 8, kSlice = kStreams * kPage;
  constexpr int kVectors = kPanel / 16;
  __m512 totals[kRows][kVectors] = {};
  for (int64_t step = 0; step < steps; ++step, a += tile_rows, b += kStep * kPanel, scales += kPanel) {
    const auto at = reinterpret_cast<uintptr_t>(b), slice = at / kSlice * kSlice;
    const char* next = reinterpret_cast<const char*>(slice + kSlice + (at - slice) / kStreams);
    __m512i high[kRows][kVectors] = {}, low[kRows][kVectors] = {};
    ONNXFUSE_UNROLL
    for (int k = 0; k < kStep; k += 4) {
      __builtin_prefetch(next + k / 4 * kPage, 0, 2);
      __builtin_prefetch(next + k / 4 * kPage + 64, 0, 2);
      __m512i weights[kVectors];
      ONNXFUSE_UNROLL
      for (int v = 0; v < kVectors; ++v)
        weights[v] = _mm512_xor_si512(_mm512_loadu_si512(b + k * kPanel + v * 64), _mm512_set1_epi8(-128));
      ONNXFUSE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const __m512i x[2] = {four(a[r].parts[0] + k), four(a[r].parts[1] + k)};
        ONNXFUSE_UNROLL
        for (int v = 0; v < kVectors; ++v) {
          high[r][v] = _mm512_dpbusd_epi32(high[r][v], weights[v], x[0]);
          low[r][v] = _mm512_dpbusd_epi32(low[r][v], weights[v], x[1]);
        }
      }
    }
    const __m512 scale[kVectors] = {load(scales), load(scales + 16)};
    ONNXFUSE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      ONNXFUSE_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high[r][v], 8),
                                             _mm512_sub_epi32(low[r][v], _mm512_set1_epi32(a[r].offset)));
        const __m512 both = _mm512_mul_ps(scale[v], _mm512_set1_ps(a[r].scale));
        totals[r][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), both, totals[r][v]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(sums + r * kPanel + 16 * v, totals[r][v]);
  }
}

template <int... kIndices>
constexpr auto by_rows(std::integer_sequence<int, kIndices...>) {
  return std::array{&multiply_tile<kIndices + 1>...};
}

bool has_vnni() {
  static const bool has = simd_target() >= SimdTarget::kAvx512 && __builtin_cpu_supports("avx512vnni");
  return has;
}

}  // namespace

bool wanted(int64_t rows, DType weight) { return weight == DType::kInt8 && rows <= kMostRows && has_vnni(); }

void cut(TileLayout& layout) {
  layout.form = TileLayout::Form::kVnni;
  layout.tiles = (layout.rows + kTileRows - 1) / kTileRows;
  layout.tile_rows = layout.tiles == 0 ? 0 : (layout.rows + layout.tiles - 1) / layout.tiles;
}

int64_t bytes(const TileLayout& layout) {
  return layout.tiles * layout.tile_rows * steps_of(layout) * static_cast<int64_t>(sizeof(Numbers));
}

void write_tiles(const TileLayout& layout, const TileSource& from, void* tiles) {
  auto* const out = static_cast<Numbers*>(tiles);
  switch (from.dtype) {
    case DType::kFloat16:
      return write_rows<Half>(layout, from, out);
    case DType::kBFloat16:
      return write_rows<BFloat16>(layout, from, out);
    default:
      return write_rows<float>(layout, from, out);
  }
}

void multiply(const TileLayout& layout, const void* a, const Weight* weights, int64_t count, const GemmBlock& block) {
  static constexpr auto kByRows = by_rows(std::make_integer_sequence<int, kTileRows>());
  const int64_t steps = steps_of(layout);
  float* sums = block.sums;
  for (int64_t i = 0; i < count * block.panels; ++i, sums += block.row_capacity * kPanel) {
    const Weight& weight = weights[i / block.panels];
    const int64_t panel = block.first_panel + i % block.panels;
    const int8_t* b = static_cast<const int8_t*>(weight.data) + panel * layout.depth * kPanel;
    for (int64_t tile = block.first_tile; tile < block.first_tile + block.tiles; ++tile) {
      const int64_t first = layout.begin(tile), rows = layout.begin(tile + 1) - first;
      if (rows == 0) continue;
      kByRows[rows - 1](static_cast<const Numbers*>(a) + place(layout, first, 0), layout.tile_rows, b,
                        weight.scales + panel * steps * kPanel, steps, sums + (first - block.first_row) * kPanel);
    }
  }
}

}  // namespace onnxfuse::vnni

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

namespace onnxfuse::vnni {

bool wanted(int64_t, DType) { return false; }
void cut(TileLayout&) {}
int64_t bytes(const TileLayout&) { return 0; }
void write_tiles(const TileLayout&, const TileSource&, void*) {}
void multiply(const TileLayout&, const void*, const Weight*, int64_t, const GemmBlock&) {}

}  // namespace onnxfuse::vnni

#endif
