// The blocked product of gemm.h for one SIMD target.
//
// A tile of sums lives in registers while k runs over a slice: some rows of a panel, 32 KB of weights. The slice stays
// in the first-level cache, the tiles of A in the second. While a tile is computed, the next tile of A and its share of
// the next slice are prefetched.
//
// The next slice is prefetched as several streams, or in order, see prefetching.h.

// Tiles are high: weights are read by few of them and, where their dtype is narrow and there are few tiles, go straight
// into registers. A slice is eight pages of weights.
template <typename W>
struct Cut {
  static constexpr int kRows = kLanes == 16 ? 12 : kLanes == 8 ? 6 : 4;      // of a tile
  static constexpr int kVectors = kLanes == 1 ? 4 : 2;                       // of a row of a tile
  static constexpr int64_t kDepth = 8 * 4096 / kPanel / int64_t{sizeof(W)};  // of a slice
  static constexpr int kUnroll = 16 / sizeof(W);                             // of the loop over k
  static constexpr int64_t kRowStride = kDepth + 16;  // of the rows of A: off a power of two, for the cache's sets
};

inline constexpr int64_t kFewRows = 36;  // beyond, weights are widened once for all tiles

inline constexpr int64_t kPrefetchTiles = 4;  // tiles of a slice that share the prefetching of the next one, at most

template <typename W>
void cut_as(TileLayout& layout) {
  layout.tiles = (layout.rows + Cut<W>::kRows - 1) / Cut<W>::kRows;
  layout.tile_rows = layout.tiles == 0 ? 0 : (layout.rows + layout.tiles - 1) / layout.tiles;
  layout.slice_depth = Cut<W>::kDepth;
  layout.row_stride = Cut<W>::kRowStride;
}

inline void cut(TileLayout& layout, DType weight) {
  if (layout.rows > kFewRows || weight == DType::kFloat32 || weight == DType::kInt8)
    cut_as<float>(layout);
  else
    cut_as<Half>(layout);
}

// Floats of a tile, and of all tiles of a slice.
inline int64_t tile_floats(const TileLayout& layout) { return layout.tile_rows * layout.row_stride; }
inline int64_t slice_floats(const TileLayout& layout) { return layout.tiles * tile_floats(layout); }

template <typename T>
void write_tiles_of(const TileLayout& layout, const TileSource& from, float* tiles) {
  for (int64_t row = from.first_row; row < from.first_row + from.rows; ++row) {
    const int64_t tile = layout.tile_of(row);
    float* out = tiles + tile * tile_floats(layout) + (row - layout.begin(tile)) * layout.row_stride;
    const T* in = static_cast<const T*>(from.data) + (row - from.first_row) * from.row_stride;
    for (int64_t i = 0; i < from.panels; ++i, in += from.panel_stride) {
      const int64_t first = (from.first_panel + i) * kPanel;
      float* to = out + first / layout.slice_depth * slice_floats(layout) + first % layout.slice_depth;
      for_lanes(std::min(kPanel, layout.depth - first),
                [&](int64_t k, auto lanes) { store(to + k, load(in + k, lanes), lanes); });
    }
  }
}

// c[r, j] = sums[r, j] + sum over k of a[r, k] * b[k, j].
struct Tile {
  const float* a;       // [rows][kRowStride]
  const float* next_a;  // to prefetch
  const void* b;        // `depth` rows of a panel
  int64_t depth, b_stride;
  const float* sums;  // [rows][kPanel], or null for zeros
  float* c;
  int64_t c_stride;
  // Bytes to prefetch: a line of each of several streams, stream_stride apart, which go on by stream_step in a round.
  const char* next_b;
  int64_t stream_stride, stream_step;
};

// sums[r][v] += a[r] * b[v] for one k.
template <int64_t kStride, int kRows, int kVectors, typename W>
ONNXFUSE_INLINE void multiply_step(const float* a, const W* b, Vec (&sums)[kRows][kVectors]) {
  Vec w[kVectors];
  ONNXFUSE_UNROLL
  for (int v = 0; v < kVectors; ++v) w[v] = load(b + v * kLanes);
  ONNXFUSE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const Vec x = splat(a[r * kStride]);
    ONNXFUSE_UNROLL
    for (int v = 0; v < kVectors; ++v) sums[r][v] = fma(x, w[v], sums[r][v]);
  }
}

// C has the tiles of A, W is the type of the weights.
template <class C, typename W, bool kPrefetch, int kRows>
void multiply_tile(const Tile& tile) {
  constexpr int kUnroll = C::kUnroll, kVectors = C::kVectors;
  constexpr int kStreams = kUnroll * kPanel * static_cast<int>(sizeof(W)) / 64;  // cache lines of a round of the loop
  constexpr int kChains = kRows < 3 ? 4 / kRows : 1;  // enough independent sums to hide the latency of fma
  for (int64_t column = 0; column < kPanel; column += kVectors * kLanes) {
    Vec sums[kChains][kRows][kVectors];
    ONNXFUSE_UNROLL
    for (int i = 0; i < kChains; ++i) {
      ONNXFUSE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        ONNXFUSE_UNROLL
        for (int v = 0; v < kVectors; ++v) sums[i][r][v] = splat(0);
      }
    }
    // c may be in memory: its lines come while the products are taken.
    ONNXFUSE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      ONNXFUSE_UNROLL
      for (int j = 0; j < kVectors * kLanes; j += 16) __builtin_prefetch(tile.c + r * tile.c_stride + column + j, 1, 3);
    }
    const float* a = tile.a;
    const W* b = static_cast<const W*>(tile.b) + column;
    const char* next_a = reinterpret_cast<const char*>(tile.next_a);
    const char* next_b = tile.next_b;
    int64_t k = 0;
    for (; k + kUnroll <= tile.depth; k += kUnroll) {
      ONNXFUSE_UNROLL
      for (int i = 0; i < kUnroll * kRows; i += 16) __builtin_prefetch(next_a + i * sizeof(float), 0, 3);
      next_a += kUnroll * kRows * sizeof(float);
      if constexpr (kPrefetch) {
        ONNXFUSE_UNROLL
        for (int i = 0; i < kStreams; ++i) __builtin_prefetch(next_b + i * tile.stream_stride, 0, 2);
        next_b += tile.stream_step;
      }
      ONNXFUSE_UNROLL
      for (int i = 0; i < kUnroll; ++i) {
        multiply_step<C::kRowStride>(a + i, b, sums[i % kChains]);
        b += tile.b_stride;
      }
      a += kUnroll;
    }
    for (; k < tile.depth; ++k, ++a, b += tile.b_stride) multiply_step<C::kRowStride>(a, b, sums[0]);
    ONNXFUSE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      ONNXFUSE_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        Vec sum = sums[0][r][v];
        ONNXFUSE_UNROLL
        for (int i = 1; i < kChains; ++i) sum = sum + sums[i][r][v];
        const int64_t j = column + v * kLanes;
        if (tile.sums != nullptr) sum = load(tile.sums + r * kPanel + j) + sum;
        store(tile.c + r * tile.c_stride + j, sum);
      }
    }
  }
}

template <class C, typename W, bool kPrefetch, int... kIndices>
void multiply_rows(int64_t rows, const Tile& tile, std::integer_sequence<int, kIndices...>) {
  static constexpr void (*kByRows[])(const Tile&) = {multiply_tile<C, W, kPrefetch, kIndices + 1>...};
  kByRows[rows - 1](tile);
}

template <class C, typename W>
void multiply_any_tile(int64_t rows, bool prefetch, const Tile& tile) {
  constexpr std::make_integer_sequence<int, C::kRows> kAllRows;
  if (prefetch)
    multiply_rows<C, W, true>(rows, tile, kAllRows);
  else
    multiply_rows<C, W, false>(rows, tile, kAllRows);
}

// Copies `depth` rows of a panel; columns from `columns` on become zeros.
template <typename W>
void copy_panel(const W* b, int64_t b_stride, int64_t columns, int64_t depth, float* to) {
  for (int64_t k = 0; k < depth; ++k, b += b_stride, to += kPanel) {
    if (columns >= kPanel) {
      for (int64_t j = 0; j < kPanel; j += kLanes) store(to + j, load(b + j));
    } else {
      for (int64_t j = 0; j < kPanel; ++j) to[j] = j < columns ? to_float(b[j]) : 0.0f;
    }
  }
}

// Copies `depth` rows of a panel of int8, kScaledRows at a time, times their scales. Weights are in order in memory.
inline void copy_scaled(const int8_t* b, const BFloat16* scales, int64_t depth, float* to) {
  constexpr int64_t kVectors = kPanel / kLanes;
  for (int64_t first = 0; first < depth; first += kScaledRows, scales += kPanel) {
    const WeightsAhead ahead(b);
    for (int64_t i = 0; i < kScaledRows * kPanel / 64; ++i) ahead.fetch(i);
    Vec scale[kVectors];
    ONNXFUSE_UNROLL
    for (int64_t v = 0; v < kVectors; ++v) scale[v] = load(scales + v * kLanes);
    for (int64_t k = 0; k < kScaledRows; k += 4, b += 4 * kPanel, to += 4 * kPanel) {
      ONNXFUSE_UNROLL
      for (int64_t v = 0; v < kVectors; ++v) {
        const Four numbers = load_fours(b + 4 * v * kLanes);
        ONNXFUSE_UNROLL
        for (int64_t i = 0; i < 4; ++i) store(to + i * kPanel + v * kLanes, numbers.each[i] * scale[v]);
      }
    }
  }
}

// A slice times the tiles of the block. `a` is the slice of the block's first tile, `copy` holds a slice of floats. The
// products are added to the sums but for the first slice, and go to the block's output after the last one.
template <class C, typename W>
void multiply_slice(const TileLayout& layout, const float* a, const Slice<W>& b, const Slice<W>& next,
                    const GemmBlock& block, float* copy) {
  // int8 becomes float here; a panel with fewer columns is filled up; several tiles want rows close together and, if
  // many, floats.
  constexpr bool kScaled = std::is_same_v<W, int8_t>;
  constexpr bool kWidens = sizeof(W) < sizeof(float) && std::is_same_v<C, Cut<float>>;
  const bool copies = kScaled || b.columns() < kPanel || (block.tiles > 1 && (kWidens || !b.weight->packed));
  if constexpr (kScaled)
    copy_scaled(b.data(), b.scales(), b.depth, copy);
  else if (copies)
    copy_panel(b.data(), b.stride(), b.columns(), b.depth, copy);
  Tile tile;
  tile.b = copies ? static_cast<const void*>(copy) : b.data();
  tile.depth = b.depth;
  tile.b_stride = copies ? kPanel : b.stride();
  const bool leaves = block.out != nullptr && b.is_last();
  tile.c_stride = leaves ? b.weight->columns : kPanel;
  // What the tiles prefetch: their share of the next slice, or what comes some way behind what they read.
  const bool in_order = prefetches_in_order() && block.tiles == 1 && !copies, alone = in_order && layout.rows == 1;
  const int64_t prefetching = b.weight->packed && !kScaled && !alone ? std::min(block.tiles, kPrefetchTiles) : 0;
  const int64_t streams = C::kUnroll * kPanel * static_cast<int64_t>(copies ? sizeof(float) : sizeof(W)) / 64;
  tile.stream_stride = in_order ? 64 : next.depth * kPanel * static_cast<int64_t>(sizeof(W)) / streams;
  tile.stream_step = prefetching == 0 ? 0 : in_order ? 64 * streams : 64 / prefetching;
  for (int64_t i = 0; i < block.tiles; ++i) {
    const int64_t begin = layout.begin(block.first_tile + i), rows = layout.begin(block.first_tile + i + 1) - begin;
    tile.a = a + i * tile_floats(layout);
    tile.next_a = tile.a + tile_floats(layout);
    float* const c = b.sums + (begin - block.first_row) * kPanel;
    tile.sums = b.first > 0 ? c : nullptr;
    tile.c = leaves ? block.out + begin * b.weight->columns + b.panel * kPanel : c;
    tile.next_b = in_order ? reinterpret_cast<const char*>(b.data()) + kInOrderAhead
                           : reinterpret_cast<const char*>(next.data()) + i * tile.stream_step * (b.depth / C::kUnroll);
    if constexpr (kScaled) {
      multiply_any_tile<C, float>(rows, false, tile);
    } else if (copies) {
      multiply_any_tile<C, float>(rows, i < prefetching, tile);
    } else {
      multiply_any_tile<C, W>(rows, i < prefetching, tile);
    }
  }
}

// The sums of `block`. `copy` holds kCopyFloats.
template <class C, typename W>
void multiply_cut(const TileLayout& layout, const float* a, const Weight* weights, int64_t count,
                  const GemmBlock& block, float* copy) {
  const int64_t group = kActivationFloats / (block.tiles * tile_floats(layout));
  for_each_slice<W>(block, weights, count, C::kDepth, group, [&](const Slice<W>& slice, const Slice<W>& next) {
    const float* rows = a + slice.first / C::kDepth * slice_floats(layout) + block.first_tile * tile_floats(layout);
    multiply_slice<C>(layout, rows, slice, next, block, copy);
  });
}

template <typename W>
void multiply_block(const TileLayout& layout, const float* a, const Weight* weights, int64_t count,
                    const GemmBlock& block, float* copy) {
  if (std::is_same_v<W, float> || std::is_same_v<W, int8_t> || layout.slice_depth == Cut<float>::kDepth)
    multiply_cut<Cut<float>, W>(layout, a, weights, count, block, copy);
  else
    multiply_cut<Cut<Half>, W>(layout, a, weights, count, block, copy);
}
