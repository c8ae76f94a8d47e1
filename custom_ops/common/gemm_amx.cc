// A number is the sum of up to three bfloat16: its parts, see gemm.h. Products of parts add up in the same registers.
//
// Many rows: a block is multiplied slice by slice. Some steps of a panel are converted to the form that AMX wants, in
// the first-level cache, and multiplied by all tiles of A, which stream from the second-level cache in the order in
// which they lie there. A tile is 32 rows by the 32 columns of a panel: four registers of sums.
//
// The sums of rows 16-31, if there are any, are in registers 2 and 3.
//
// Up to 32 rows are one tile and share no weights: those are converted a few steps ahead of the products instead, a
// panel at a time. That leaves the speed to the memory.
#include "common/gemm_amx.h"

#include <array>

#include "common/amx_config.h"
#include "common/intrinsics.h"
#include "common/prefetching.h"
#include "common/simd_target.h"

#if ONNXFUSE_HAS_AMX

namespace onnxfuse::amx {
namespace {

constexpr int64_t kTileRows = 32;
constexpr int64_t kRegisterRows = 16;

}  // namespace

// What every machine runs stands here, before the instructions of some are let in.

bool wanted(int64_t rows, DType weight) {
  if (simd_target() != SimdTarget::kAmx) return false;
  if (weight == DType::kBFloat16) return rows >= 2;
  // Weights of more parts cost more to convert, where AVX-512 only loads them.
  if (weight == DType::kFloat16) return rows >= 8;
  if (weight == DType::kInt8) return true;                     // of rows that gemm_int8.cc does not take
  return (rows >= 12 && rows <= kRegisterRows) || rows >= 24;  // a second register of rows has to pay, too
}

void cut(TileLayout& layout, DType a, DType weight) {
  layout.form = TileLayout::Form::kAmx;
  layout.parts = weight == DType::kFloat32 ? 3 : a == DType::kBFloat16 ? 1 : 2;
  layout.tile_rows = layout.rows <= kRegisterRows ? layout.rows : kTileRows;
  layout.tiles = layout.rows == 0 ? 0 : (layout.rows + layout.tile_rows - 1) / layout.tile_rows;
}

}  // namespace onnxfuse::amx

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,f16c,amx-tile,amx-bf16"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,f16c,amx-tile,amx-bf16")
#endif

namespace onnxfuse::amx {
namespace {

constexpr int64_t kRegisterBytes = 1024;          // 16 rows of 32 bfloat16
constexpr int64_t kActivationBytes = 768 * 1024;  // of A that the second-level cache holds beside the sums

template <typename W>
constexpr int kPartsOf = std::is_same_v<W, float>  ? 3
                         : std::is_same_v<W, Half> ? 2
                                                   : 1;

#include "common/avx512_load.h"
//
#include "common/bfloat16_rows.h"
//
#include "common/bfloat16_pairs.h"
//
#include "common/amx_weights.h"

// The products of parts that count, in the order in which they are taken: each has a part in common with the one
// before.
template <int kPartsA, int kPartsB>
struct Products {
  int a[6] = {}, b[6] = {}, count = 0;

  constexpr Products() {
    int last = 0;
    for (int j = kPartsB - 1; j >= 0; --j) {
      const int parts = std::min(kPartsA, std::max(kPartsA, kPartsB) - j), first = last;
      add(first, j);
      for (int i = 0; i < parts; ++i) {
        if (i == first) continue;
        add(i, j);
        last = i;
      }
    }
  }

  constexpr void add(int i, int j) {
    a[count] = i;
    b[count++] = j;
  }
};

// The sums += a @ b over one step of K. Part i of the first 16 rows is at a + i * part_bytes, the other rows behind it
// if kHigh. between.pairs<begin, end>() is called between the products, for ranges that cover the pairs of a step: work
// that the processor does meanwhile.
template <int kPartsA, int kPartsB, bool kHigh, int kIndex = 0, class Between>
ONNXFUSE_INLINE void multiply_step(const char* a, int64_t part_bytes, const char* b, Between& between) {
  constexpr Products<kPartsA, kPartsB> kProducts;
  constexpr int kA = kProducts.a[kIndex], kB = kProducts.b[kIndex], kCount = kProducts.count;
  constexpr int kBefore = kIndex == 0 ? 0 : kIndex - 1;
  // GCC does not know that _tile_loadd reads memory, and could move what was written there behind it.
  if constexpr (kIndex == 0) __asm__ volatile("" ::: "memory");
  if constexpr (kIndex == 0 || kB != kProducts.b[kBefore]) {
    _tile_loadd(6, b + 2 * kB * kRegisterBytes, 64);
    _tile_loadd(7, b + (2 * kB + 1) * kRegisterBytes, 64);
  }
  if constexpr (kIndex == 0 || kA != kProducts.a[kBefore]) {
    _tile_loadd(4, a + kA * part_bytes, 64);
    if constexpr (kHigh) _tile_loadd(5, a + kA * part_bytes + kRegisterBytes, 64);
  }
  constexpr int kBegin = kPairs * kIndex / kCount, kEnd = kPairs * (kIndex + 1) / kCount;
  constexpr int kMiddle = kHigh ? (kBegin + kEnd) / 2 : kEnd;
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  between.template pairs<kBegin, kMiddle>();
  if constexpr (kHigh) {
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    between.template pairs<kMiddle, kEnd>();
  }
  if constexpr (kIndex + 1 < kCount) multiply_step<kPartsA, kPartsB, kHigh, kIndex + 1>(a, part_bytes, b, between);
}

struct Nothing {
  template <int kBegin, int kEnd>
  void pairs() const {}
};

inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// c: [16 or 32, 32].
template <bool kHigh>
inline void load_sums(const float* c) {
  constexpr int kRow = kPanel * sizeof(float);
  _tile_loadd(0, c, kRow);
  _tile_loadd(1, c + 16, kRow);
  if constexpr (kHigh) {
    _tile_loadd(2, c + 16 * kPanel, kRow);
    _tile_loadd(3, c + 16 * kPanel + 16, kRow);
  }
}

// Rows of c are `stride` floats apart.
template <bool kHigh>
inline void store_sums(float* c, int64_t stride) {
  const int64_t row = stride * static_cast<int64_t>(sizeof(float));
  _tile_stored(0, c, row);
  _tile_stored(1, c + 16, row);
  if constexpr (kHigh) {
    _tile_stored(2, c + 16 * stride, row);
    _tile_stored(3, c + 16 * stride + 16, row);
  }
}

// A tile of sums: [32, 32], or [16, 32] where the higher rows are not needed.
struct Sums {
  const float* before;  // to add to, rows of a panel; or null
  float* to;
  int64_t stride;  // of `to`
};

// c = c.before + a @ b over `steps` steps of K.
template <int kPartsA, int kPartsB, bool kHigh, class Between>
void multiply_tile(const char* a, const char* b, int64_t steps, const Sums& c, Prefetcher& prefetcher,
                   Between& between) {
  if (c.before != nullptr)
    load_sums<kHigh>(c.before);
  else
    zero_sums();
  for (int64_t step = 0; step < steps; ++step) {
    prefetcher.piece();
    multiply_step<kPartsA, kPartsB, kHigh>(a, 2 * kRegisterBytes, b, between);
    a += 2 * kPartsA * kRegisterBytes;
    b += 2 * kPartsB * kRegisterBytes;
  }
  store_sums<kHigh>(c.to, c.stride);
}

template <int kPartsA, typename W>
void multiply_block(const TileLayout& layout, const char* a, const Weight* weights, int64_t count,
                    const GemmBlock& block, char* scratch) {
  constexpr int kPartsB = kPartsOf<W>;
  constexpr int64_t kSliceSteps = kScratchBytes / 2 / Conversion<false, W>::kStepBytes;
  const int64_t depth = layout.depth, steps = steps_of(depth), slices = (steps + kSliceSteps - 1) / kSliceSteps;
  const int64_t a_step_bytes = 2 * kPartsA * kRegisterBytes, a_tile_bytes = steps * a_step_bytes;
  const int64_t group = std::clamp<int64_t>(kActivationBytes / (block.tiles * kSliceSteps * a_step_bytes), 1, slices);
  for (int64_t first = 0; first < slices; first += group) {
    const int64_t grouped = std::min(group, slices - first), items = count * block.panels * grouped;
    // Item i is slice i % grouped of panel i / grouped % panels of the weight that is left.
    const auto weight_at = [&](int64_t i) -> const Weight& { return weights[i / grouped / block.panels]; };
    const auto panel_at = [&](int64_t i) { return block.first_panel + i / grouped % block.panels; };
    const auto step_at = [&](int64_t i) { return (first + i % grouped) * kSliceSteps; };
    const auto steps_at = [&](int64_t i) { return std::min(kSliceSteps, steps - step_at(i)); };
    const auto source = [&](int64_t i) {
      const Weight& weight = weight_at(i);
      const int64_t panel = panel_at(i), k = step_at(i) * kStep;
      return static_cast<const W*>(weight.data) +
             (weight.packed ? (panel * depth + k) * kPanel : k * weight.columns + panel * kPanel);
    };
    // One half of the scratch is multiplied while the other is filled.
    const auto converted = [&](int64_t i) { return scratch + i % 2 * (kScratchBytes / 2); };
    const auto conversion = [&](int64_t i, int64_t turns) {
      const Weight& weight = weight_at(i);
      return Background<W>(Conversion<false, W>(source(i), weight, depth - step_at(i) * kStep,
                                                weight.columns - panel_at(i) * kPanel, converted(i)),
                           turns > 0 ? steps_at(i) : 0, std::max<int64_t>(turns, 1));
    };
    conversion(0, 1).finish();
    for (int64_t i = 0; i < items; ++i) {
      const int64_t slice_steps = steps_at(i), turns = block.tiles * slice_steps, slice = first + i % grouped;
      const bool more = weight_at(i).packed && i + 2 < items;
      Prefetcher prefetcher(source(more ? i + 2 : i),
                            more ? steps_at(i + 2) * kStep * kPanel * static_cast<int64_t>(sizeof(W)) : 0, turns);
      Background<W> next = i + 1 < items ? conversion(i + 1, turns) : conversion(i, 0);
      float* sums = block.sums + i / grouped * block.row_capacity * kPanel;
      for (int64_t tile = 0; tile < block.tiles; ++tile, sums += kTileRows * kPanel) {
        const char* rows = a + (block.first_tile + tile) * a_tile_bytes + step_at(i) * a_step_bytes;
        const int64_t first_row = tile * kTileRows, left = block.rows - first_row;
        const bool leaves = block.out != nullptr && slice + 1 == slices, whole = left >= kTileRows;
        const int64_t columns = weight_at(i).columns;
        float* out = leaves ? block.out + (block.first_row + first_row) * columns + panel_at(i) * kPanel : nullptr;
        Sums c{slice > 0 ? sums : nullptr, sums, kPanel};
        if (leaves && whole) {  // to lines that come while the products are taken
          c.to = out, c.stride = columns;
          for (int64_t row = 0; row < kTileRows; ++row) {
            __builtin_prefetch(out + row * columns, 1, 3);
            __builtin_prefetch(out + row * columns + 16, 1, 3);
          }
        }
        if (left > kRegisterRows)
          multiply_tile<kPartsA, kPartsB, true>(rows, converted(i), slice_steps, c, prefetcher, next);
        else
          multiply_tile<kPartsA, kPartsB, false>(rows, converted(i), slice_steps, c, prefetcher, next);
        if (slice + 1 == slices) put_in_order<W>(c.to, c.stride, std::min(left, kTileRows));
        if (leaves && !whole) {  // registers have more rows than there are
          for (int64_t row = 0; row < left; ++row) std::copy_n(sums + row * kPanel, kPanel, out + row * columns);
        }
      }
      next.finish();
    }
  }
}

// Of few rows, all of K in one go: the sums stay in registers, and a step is converted while earlier ones are
// multiplied. Where all parts of A fit in one register, one below the other, they are taken for more rows: that halves
// the products, and their sums are added up in the end.
template <int kPartsA, bool kHigh, typename W>
void multiply_few_rows(const TileLayout& layout, const char* a, const Weight* weights, int64_t count,
                       const GemmBlock& block, char* scratch) {
  constexpr int kPartsB = kPartsOf<W>;
  constexpr int64_t kConverted = 4,
                    kStepBytes = Conversion<true, W>::kStepBytes;  // steps of W that lie there converted
  static_assert(kConverted * kStepBytes <= kScratchBytes);
  const int64_t steps = steps_of(layout.depth), part_bytes = layout.tile_rows * 64;
  for (int64_t i = 0; i < count * block.panels; ++i) {
    const Weight& weight = weights[i / block.panels];
    const int64_t panel = block.first_panel + i % block.panels, stride = weight.packed ? kPanel : weight.columns;
    const W* b = static_cast<const W*>(weight.data) + panel * kPanel * (weight.packed ? layout.depth : 1);
    const auto conversion = [&](int64_t step) {
      return Conversion<true, W>(b + step * kStep * stride, weight, layout.depth - step * kStep,
                                 weight.columns - panel * kPanel, scratch + step % kConverted * kStepBytes);
    };
    for (int64_t step = 0; step < std::min(kConverted - 1, steps); ++step)
      conversion(step).template pairs<0, kStep / 2>();
    zero_sums();
    for (int64_t step = 0; step < steps; ++step) {
      const char *rows = a + step * layout.parts * part_bytes, *columns = scratch + step % kConverted * kStepBytes;
      if (step + kConverted - 1 < steps) {
        auto ahead = conversion(step + kConverted - 1);
        multiply_step<kPartsA, kPartsB, kHigh>(rows, part_bytes, columns, ahead);
      } else {
        Nothing nothing;
        multiply_step<kPartsA, kPartsB, kHigh>(rows, part_bytes, columns, nothing);
      }
    }
    float* sums = block.sums + i * block.row_capacity * kPanel;
    if (kPartsA < layout.parts) {
      float found[kRegisterRows * kPanel];
      store_sums<false>(found, kPanel);
      for (int64_t j = 0, end = layout.rows * kPanel; j < end; j += 16)
        _mm512_storeu_ps(sums + j, _mm512_add_ps(_mm512_loadu_ps(found + j), _mm512_loadu_ps(found + end + j)));
    } else {
      store_sums<kHigh>(sums, kPanel);
    }
    put_in_order<W>(sums, kPanel, layout.rows);
  }
}

// Whether two parts of A fit in one register.
bool stacks(const TileLayout& layout) { return layout.parts == 2 && 2 * layout.rows <= kRegisterRows; }

template <int kPartsA, typename W>
void multiply_parts(const TileLayout& layout, const char* a, const Weight* weights, int64_t count,
                    const GemmBlock& block, char* scratch) {
  if (layout.rows > kTileRows)
    multiply_block<kPartsA, W>(layout, a, weights, count, block, scratch);
  else if (layout.rows > kRegisterRows)
    multiply_few_rows<kPartsA, true, W>(layout, a, weights, count, block, scratch);
  else if (kPartsA == 2 && stacks(layout))
    multiply_few_rows<1, false, W>(layout, a, weights, count, block, scratch);
  else
    multiply_few_rows<kPartsA, false, W>(layout, a, weights, count, block, scratch);
}

}  // namespace

void write_tiles(const TileLayout& layout, const TileSource& from, void* tiles) {
  write_rows_of_any(layout, from, static_cast<char*>(tiles));
}

void multiply(const TileLayout& layout, const void* a, const Weight* weights, int64_t count, const GemmBlock& block,
              void* scratch) {
  const int64_t stacked = stacks(layout) ? 2 * layout.rows : layout.rows, low = std::min(stacked, kRegisterRows);
  const int64_t high = layout.rows > kTileRows ? kRegisterRows : std::max<int64_t>(stacked - low, 1);
  const TileConfig config(low, high);
  _tile_loadconfig(&config);
  const char* rows = static_cast<const char*>(a);
  char* converted = static_cast<char*>(scratch);
  if (weights->dtype == DType::kFloat32)
    multiply_parts<3, float>(layout, rows, weights, count, block, converted);
  else if (weights->dtype == DType::kFloat16)
    multiply_parts<2, Half>(layout, rows, weights, count, block, converted);
  else if (weights->dtype == DType::kInt8 && layout.parts == 2)
    multiply_parts<2, int8_t>(layout, rows, weights, count, block, converted);
  else if (weights->dtype == DType::kInt8)
    multiply_parts<1, int8_t>(layout, rows, weights, count, block, converted);
  else if (layout.parts == 2)
    multiply_parts<2, BFloat16>(layout, rows, weights, count, block, converted);
  else
    multiply_parts<1, BFloat16>(layout, rows, weights, count, block, converted);
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
void cut(TileLayout&, DType, DType) {}
void write_tiles(const TileLayout&, const TileSource&, void*) {}
void multiply(const TileLayout&, const void*, const Weight*, int64_t, const GemmBlock&, void*) {}

}  // namespace onnxfuse::amx

#endif
