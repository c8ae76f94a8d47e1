// Of 32 numbers of a row, as many as share a scale of the weights, the largest becomes 32639, and each the integer
// 256 high + low next to it; both parts are int8. So all products and their sums over those 32 are exact, and an
// activation is off by at most 2^-16 of the largest beside it.
//
// AMX takes the weights as they lie in memory, and the two parts of up to 8 rows as the rows of one register. VNNI
// takes unsigned numbers by signed ones: weights get 128 more, by which the sum is too large by 128 times the sum of
// the activations. It is left with one row, and with machines that lack AMX.
#include "common/gemm_int8.h"

#include "common/simd_target.h"

#if ONNXFUSE_HAS_AMX

#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include "common/amx_config.h"
#include "common/intrinsics.h"
#include "common/prefetching.h"

namespace onnxfuse::int8 {
namespace {

constexpr int64_t kAmxRows = 16, kVnniRows = 4;  // of a tile: what the registers hold
constexpr int64_t kMostAmxRows = 32;             // beyond, gemm_amx.cc is quicker: here sums are scaled at every step

bool on_amx(int64_t rows) { return rows > 1 && simd_target() == SimdTarget::kAmx; }

bool has_vnni() {
  static const bool has = simd_target() >= SimdTarget::kAvx512 && __builtin_cpu_supports("avx512vnni");
  return has;
}

}  // namespace

// What every machine runs stands here, before the instructions of some are let in.

bool wanted(int64_t rows, DType weight) {
  return weight == DType::kInt8 && (on_amx(rows) ? rows <= kMostAmxRows : has_vnni());
}

void cut(TileLayout& layout) {
  const int64_t most = on_amx(layout.rows) ? kAmxRows : kVnniRows;
  layout.form = TileLayout::Form::kInt8;
  layout.tiles = (layout.rows + most - 1) / most;
  layout.tile_rows = layout.tiles == 0 ? 0 : (layout.rows + layout.tiles - 1) / layout.tiles;
}

}  // namespace onnxfuse::int8

#if defined(__clang__)
#pragma clang attribute push(                                                                        \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c,amx-tile,amx-int8"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c,amx-tile,amx-int8")
#endif

namespace onnxfuse::int8 {
namespace {

constexpr int64_t kStep = kScaledRows;  // of K
constexpr int kVectors = kPanel / 16;

// kStep numbers of each row of a tile: scale * (256 high + low).
struct Step {
  int8_t* parts;     // [high, low][rows][kStep]
  float* scales;     // [rows]
  int32_t* offsets;  // [rows], 128 times the sum of the integers

  Step(const void* at, int64_t rows)
      : parts(static_cast<int8_t*>(const_cast<void*>(at))),
        scales(reinterpret_cast<float*>(parts + 2 * rows * kStep)),
        offsets(reinterpret_cast<int32_t*>(scales + rows)) {}

  static int64_t bytes(int64_t rows) { return (rows * (2 * kStep + 8) + 63) / 64 * 64; }
};

int64_t steps_of(const TileLayout& layout) { return layout.depth / kStep; }

// tiles: [tiles][K/32] Step
const char* place(const TileLayout& layout, const void* tiles, int64_t tile, int64_t step) {
  return static_cast<const char*>(tiles) + (tile * steps_of(layout) + step) * Step::bytes(layout.tile_rows);
}

#include "common/avx512_load.h"

// kStep numbers of row `row`. Those that are not finite make a scale that is NaN.
template <typename T>
void write_row(const T* x, const Step& to, int64_t row, int64_t rows) {
  constexpr float kLargest = 127 * 256 + 127;
  constexpr int kNanOrInfinity = 0x99;
  const __m512 numbers[2] = {load(x), load(x + 16)};
  const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(numbers[0]), _mm512_abs_ps(numbers[1])));
  const bool finite =
      (_mm512_fpclass_ps_mask(numbers[0], kNanOrInfinity) | _mm512_fpclass_ps_mask(numbers[1], kNanOrInfinity)) == 0;
  const float scale = finite ? largest / kLargest : std::numeric_limits<float>::quiet_NaN();
  __m512i sum = _mm512_setzero_si512();
  for (int half = 0; half < 2; ++half) {
    // The scale may be a subnormal number, and be rounded down a lot.
    const __m512 steps = _mm512_div_ps(numbers[half], _mm512_set1_ps(scale));
    const __m512 within = _mm512_max_ps(_mm512_min_ps(steps, _mm512_set1_ps(kLargest)), _mm512_set1_ps(-kLargest));
    const __m512i integers = scale > 0 ? _mm512_cvtps_epi32(within) : _mm512_setzero_si512();
    const __m512i parts[2] = {_mm512_srai_epi32(_mm512_add_epi32(integers, _mm512_set1_epi32(128)), 8), integers};
    for (int part = 0; part < 2; ++part) {
      int8_t* const out = to.parts + (part * rows + row) * kStep + 16 * half;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(parts[part]));
    }
    sum = _mm512_add_epi32(sum, integers);
  }
  to.scales[row] = scale;
  to.offsets[row] = 128 * _mm512_reduce_add_epi32(sum);
}

template <typename T>
void write_rows(const TileLayout& layout, const TileSource& from, void* tiles) {
  for (int64_t row = from.first_row; row < from.first_row + from.rows; ++row) {
    const T* in = static_cast<const T*>(from.data) + (row - from.first_row) * from.row_stride;
    for (int64_t i = 0; i < from.panels; ++i, in += from.panel_stride) {
      const Step to(place(layout, tiles, row / layout.tile_rows, from.first_panel + i), layout.tile_rows);
      write_row(in, to, row % layout.tile_rows, layout.tile_rows);
    }
  }
}

// Adds the sums of the integers, times both scales.
inline void add(__m512i high, __m512i low, __m512 scale, float scale_of_row, float* sums) {
  const __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low));
  const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(scale_of_row));
  _mm512_storeu_ps(sums, _mm512_fmadd_ps(sum, both, _mm512_loadu_ps(sums)));
}

// Four numbers as the instruction takes them, for all columns.
inline __m512i four(const int8_t* p) {
  int32_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return _mm512_set1_epi32(bits);
}

// sums[kRows][kPanel] += the product of `steps` steps of a tile and a panel.
template <int kRows>
void multiply_on_vnni(const char* a, int64_t, const int8_t* b, const BFloat16* scales, int64_t steps, float* sums) {
  const bool in_order = prefetches_in_order();
  for (int64_t step = 0; step < steps; ++step, a += Step::bytes(kRows), b += kStep * kPanel, scales += kPanel) {
    const Step rows(a, kRows);
    const WeightsAhead ahead(b, in_order);
    __m512i high[kRows][kVectors] = {}, low[kRows][kVectors];
    ONNXFUSE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      ONNXFUSE_UNROLL
      for (int v = 0; v < kVectors; ++v) low[r][v] = _mm512_set1_epi32(-rows.offsets[r]);
    }
    ONNXFUSE_UNROLL
    for (int k = 0; k < kStep; k += 4) {
      ahead.fetch(k / 2);
      ahead.fetch(k / 2 + 1);
      __m512i weights[kVectors];
      ONNXFUSE_UNROLL
      for (int v = 0; v < kVectors; ++v)
        weights[v] = _mm512_xor_si512(_mm512_loadu_si512(b + k * kPanel + v * 64), _mm512_set1_epi8(-128));
      ONNXFUSE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const __m512i x[2] = {four(rows.parts + r * kStep + k), four(rows.parts + (kRows + r) * kStep + k)};
        ONNXFUSE_UNROLL
        for (int v = 0; v < kVectors; ++v) {
          high[r][v] = _mm512_dpbusd_epi32(high[r][v], weights[v], x[0]);
          low[r][v] = _mm512_dpbusd_epi32(low[r][v], weights[v], x[1]);
        }
      }
    }
    ONNXFUSE_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const __m512 scale = load(scales + 16 * v);
      ONNXFUSE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        add(high[r][v], low[r][v], scale, rows.scales[r], sums + r * kPanel + 16 * v);
      }
    }
  }
}

// The same for `rows` of `tile_rows` rows. Registers 0 to 3 are the sums, by columns and then by parts; 4 and 5 the
// parts of A, 6 and 7 the columns of W. Where both parts fit in one register, 2, 3 and 5 stay unused. What a step
// found is added to the sums while the next one is multiplied.
template <bool kInOne>
void multiply_on_amx(const char* a, int64_t tile_rows, int64_t rows, const int8_t* b, const BFloat16* scales,
                     int64_t steps, float* sums) {
  constexpr int64_t kStride = 128;  // of four rows of a panel
  alignas(64) int32_t found[2][kVectors][2 * kAmxRows][16];
  const int64_t second = kInOne ? tile_rows : kAmxRows;
  for (int64_t step = 0; step <= steps; ++step) {
    if (step < steps) {
      const int8_t* const parts = Step(a + step * Step::bytes(tile_rows), tile_rows).parts;
      const int8_t* const weights = b + step * kStep * kPanel;
      auto& to = found[step % 2];
      const WeightsAhead ahead(weights);
      for (int i = 0; i < kStep * kPanel / 64; ++i) ahead.fetch(i);
      _tile_zero(0);
      _tile_zero(1);
      _tile_loadd(4, parts, kStep);
      _tile_loadd(6, weights, kStride);
      _tile_dpbssd(0, 4, 6);
      _tile_loadd(7, weights + 64, kStride);
      _tile_dpbssd(1, 4, 7);
      if constexpr (!kInOne) {
        _tile_zero(2);
        _tile_zero(3);
        _tile_loadd(5, parts + tile_rows * kStep, kStep);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
      }
      _tile_stored(0, to[0], 64);
      _tile_stored(1, to[1], 64);
      if constexpr (!kInOne) {
        _tile_stored(2, to[0][kAmxRows], 64);
        _tile_stored(3, to[1][kAmxRows], 64);
      }
    }
    if (step == 0) continue;
    const auto& from = found[(step - 1) % 2];
    const Step of_rows(a + (step - 1) * Step::bytes(tile_rows), tile_rows);
    for (int v = 0; v < kVectors; ++v) {
      const __m512 scale = load(scales + (step - 1) * kPanel + 16 * v);
      for (int64_t r = 0; r < rows; ++r) {
        add(_mm512_load_si512(from[v][r]), _mm512_load_si512(from[v][second + r]), scale, of_rows.scales[r],
            sums + r * kPanel + 16 * v);
      }
    }
  }
}

template <int... kIndices>
constexpr auto on_vnni_by_rows(std::integer_sequence<int, kIndices...>) {
  return std::array{&multiply_on_vnni<kIndices + 1>...};
}

template <class MultiplyTile>
void multiply_all(const TileLayout& layout, const void* a, const Weight* weights, int64_t count, const GemmBlock& block,
                  const MultiplyTile& multiply_tile) {
  const int64_t steps = steps_of(layout);
  float* sums = block.sums;
  std::fill_n(sums, count * block.panels * block.row_capacity * kPanel, 0.0f);
  for (int64_t i = 0; i < count * block.panels; ++i, sums += block.row_capacity * kPanel) {
    const Weight& weight = weights[i / block.panels];
    const int64_t at = (block.first_panel + i % block.panels) * steps;
    const int8_t* const b = static_cast<const int8_t*>(weight.data) + at * kStep * kPanel;
    for (int64_t tile = block.first_tile; tile < block.first_tile + block.tiles; ++tile) {
      const int64_t row = layout.begin(tile);
      multiply_tile(place(layout, a, tile, 0), layout.begin(tile + 1) - row, b, weight.scales + at * kPanel, steps,
                    sums + (row - block.first_row) * kPanel);
    }
  }
}

}  // namespace

int64_t bytes(const TileLayout& layout) { return layout.tiles * steps_of(layout) * Step::bytes(layout.tile_rows); }

void write_tiles(const TileLayout& layout, const TileSource& from, void* tiles) {
  switch (from.dtype) {
    case DType::kFloat16:
      return write_rows<Half>(layout, from, tiles);
    case DType::kBFloat16:
      return write_rows<BFloat16>(layout, from, tiles);
    default:
      return write_rows<float>(layout, from, tiles);
  }
}

void multiply(const TileLayout& layout, const void* a, const Weight* weights, int64_t count, const GemmBlock& block) {
  const int64_t tile_rows = layout.tile_rows;
  if (!on_amx(layout.rows)) {
    static constexpr auto kByRows = on_vnni_by_rows(std::make_integer_sequence<int, kVnniRows>());
    return multiply_all(layout, a, weights, count, block, kByRows[tile_rows - 1]);
  }
  const bool in_one = 2 * tile_rows <= kAmxRows;
  const int64_t registers = in_one ? 2 * tile_rows : tile_rows;
  amx::TileConfig config(registers, registers);
  config.row_bytes[4] = config.row_bytes[5] = kStep;
  config.rows[6] = config.rows[7] = kStep / 4;
  _tile_loadconfig(&config);
  const auto multiply_tile = in_one ? multiply_on_amx<true> : multiply_on_amx<false>;
  multiply_all(layout, a, weights, count, block,
               [&](const char* rows, int64_t its_rows, const int8_t* b, const BFloat16* scales, int64_t steps,
                   float* sums) { multiply_tile(rows, tile_rows, its_rows, b, scales, steps, sums); });
  _tile_release();
}

}  // namespace onnxfuse::int8

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

namespace onnxfuse::int8 {

bool wanted(int64_t, DType) { return false; }
void cut(TileLayout&) {}
int64_t bytes(const TileLayout&) { return 0; }
void write_tiles(const TileLayout&, const TileSource&, void*) {}
void multiply(const TileLayout&, const void*, const Weight*, int64_t, const GemmBlock&) {}

}  // namespace onnxfuse::int8

#endif
