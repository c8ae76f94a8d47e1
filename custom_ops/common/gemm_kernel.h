// The blocked product of gemm.h for one SIMD target.
//
// A tile of sums lives in registers while k runs over a slice: some rows of one or two panels, 32 KB of float32. The
// slice stays in the first-level cache, the tiles of A in the second. While a tile is computed, the next tile of A and
// its share of the next slice are prefetched.
//
// The next slice is prefetched as several streams, 4 KB apart: a processor follows a stream up to the end of a page
// only, and one stream alone leaves a quarter of the memory bandwidth unused.

// A few rows make high tiles of one panel: weights, which come from memory, are read by few tiles and, where their
// dtype is narrow and the tile is the only one, go straight into registers. A slice is eight pages of weights.
template <typename W>
struct FewRows {
  static constexpr int kRows = kLanes == 16 ? 12 : kLanes == 8 ? 6 : 4;                   // of a tile
  static constexpr int kVectors = kLanes == 1 ? 4 : 2;                                    // of a row of a tile
  static constexpr int64_t kPanels = 1, kDepth = 8 * 4096 / kPanel / int64_t{sizeof(W)};  // of a slice
  static constexpr int kUnroll = 16 / sizeof(W);                                          // of the loop over k
};

// Many rows make wide tiles of two panels, which take the fewest instructions for a product.
struct ManyRows {
  static constexpr int kRows = kLanes == 1 ? 4 : 6;
  static constexpr int kVectors = kLanes == 16 ? 4 : FewRows<float>::kVectors;
  static constexpr int64_t kPanels = 2, kDepth = 128;
  static constexpr int kUnroll = 4;
};

inline constexpr int64_t kFewRows = 36;

template <class Cut>
inline constexpr int64_t kRowStride = Cut::kDepth + 16;  // of the rows of A: off a power of two, for the cache's sets

inline constexpr int64_t kPrefetchTiles = 4;  // tiles of a slice that share the prefetching of the next one, at most

template <class Cut>
void cut_rows(TileLayout& layout) {
  layout.tiles = (layout.rows + Cut::kRows - 1) / Cut::kRows;
  layout.tile_rows = layout.tiles == 0 ? 0 : (layout.rows + layout.tiles - 1) / layout.tiles;
  layout.slice_depth = Cut::kDepth;
  layout.row_stride = kRowStride<Cut>;
}

inline void cut(TileLayout& layout, DType weight) {
  if (layout.rows > kFewRows)
    cut_rows<ManyRows>(layout);
  else if (weight == DType::kFloat32 || weight == DType::kInt8)
    cut_rows<FewRows<float>>(layout);
  else
    cut_rows<FewRows<Half>>(layout);
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

// c[r, j] = sum over k of a[r, k] * b[k, j].
struct Tile {
  const float* a;       // [rows][kRowStride]
  const float* next_a;  // to prefetch
  const void* b;        // `depth` rows of a panel
  int64_t depth, panels;
  int64_t b_stride, b_panel_stride;  // elements from row to row, from panel to panel
  float* c;                          // `panels` times [rows][kPanel]
  int64_t c_panel_stride;
  bool add;  // to what c holds; else c is overwritten
  // Bytes to prefetch: of each panel several streams, stream_stride apart, and of each stream stream_step in a round.
  const char* next_b;
  int64_t next_panel_stride, stream_stride, stream_step;
};

// sums[r][v] += a[r] * b[v] for one k.
template <int64_t kStride, int kRows, int kVectors, typename W>
ONNXFUSE_INLINE void multiply_step(const float* a, const W* b, int64_t b_panel_stride, Vec (&sums)[kRows][kVectors]) {
  Vec w[kVectors];
  ONNXFUSE_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    constexpr int64_t kInPanel = kPanel / kLanes;
    w[v] = load(b + v / kInPanel * b_panel_stride + v % kInPanel * kLanes);
  }
  ONNXFUSE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const Vec x = splat(a[r * kStride]);
    ONNXFUSE_UNROLL
    for (int v = 0; v < kVectors; ++v) sums[r][v] = fma(x, w[v], sums[r][v]);
  }
}

template <class Cut, int kRows, int kVectors, bool kPrefetch, typename W>
void multiply_tile(const Tile& tile) {
  constexpr int64_t kStride = kRowStride<Cut>;
  constexpr int kUnroll = Cut::kUnroll;
  // A round of the loop uses this many cache lines of each panel.
  constexpr int kStreams = kUnroll * kPanel * static_cast<int>(sizeof(W)) / 64;
  constexpr int kChains = kRows < 3 ? 4 / kRows : 1;  // enough independent sums to hide the latency of fma
  for (int64_t column = 0; column < tile.panels * kPanel; column += kVectors * kLanes) {
    Vec sums[kChains][kRows][kVectors];
    ONNXFUSE_UNROLL
    for (int i = 0; i < kChains; ++i) {
      ONNXFUSE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        ONNXFUSE_UNROLL
        for (int v = 0; v < kVectors; ++v) sums[i][r][v] = splat(0);
      }
    }
    const float* a = tile.a;
    const W* b = static_cast<const W*>(tile.b) + column / kPanel * tile.b_panel_stride + column % kPanel;
    const char* next_a = reinterpret_cast<const char*>(tile.next_a);
    const char* next_b = tile.next_b;
    int64_t k = 0;
    for (; k + kUnroll <= tile.depth; k += kUnroll) {
      ONNXFUSE_UNROLL
      for (int i = 0; i < kUnroll * kRows; i += 16) __builtin_prefetch(next_a + i * sizeof(float), 0, 3);
      next_a += kUnroll * kRows * sizeof(float);
      if constexpr (kPrefetch) {
        ONNXFUSE_UNROLL
        for (int i = 0; i < Cut::kPanels * kStreams; ++i)
          __builtin_prefetch(next_b + i / kStreams * tile.next_panel_stride + i % kStreams * tile.stream_stride, 0, 2);
        next_b += tile.stream_step;
      }
      ONNXFUSE_UNROLL
      for (int i = 0; i < kUnroll; ++i) {
        multiply_step<kStride>(a + i, b, tile.b_panel_stride, sums[i % kChains]);
        b += tile.b_stride;
      }
      a += kUnroll;
    }
    for (; k < tile.depth; ++k, ++a, b += tile.b_stride) multiply_step<kStride>(a, b, tile.b_panel_stride, sums[0]);
    ONNXFUSE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      ONNXFUSE_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        Vec sum = sums[0][r][v];
        ONNXFUSE_UNROLL
        for (int i = 1; i < kChains; ++i) sum = sum + sums[i][r][v];
        const int64_t j = column + v * kLanes;
        float* c = tile.c + j / kPanel * tile.c_panel_stride + r * kPanel + j % kPanel;
        store(c, tile.add ? load(c) + sum : sum);
      }
    }
  }
}

template <class Cut, int kVectors, bool kPrefetch, typename W, int... kIndices>
void multiply_rows(int64_t rows, const Tile& tile, std::integer_sequence<int, kIndices...>) {
  static constexpr void (*kByRows[])(const Tile&) = {multiply_tile<Cut, kIndices + 1, kVectors, kPrefetch, W>...};
  kByRows[rows - 1](tile);
}

template <class Cut, typename W>
void multiply_any_tile(int64_t rows, bool prefetch, const Tile& tile) {
  constexpr std::make_integer_sequence<int, Cut::kRows> kAllRows;
  if (tile.panels < Cut::kPanels)
    multiply_rows<Cut, FewRows<W>::kVectors, false, W>(rows, tile, kAllRows);
  else if (prefetch)
    multiply_rows<Cut, Cut::kVectors, true, W>(rows, tile, kAllRows);
  else
    multiply_rows<Cut, Cut::kVectors, false, W>(rows, tile, kAllRows);
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

// Where a slice of a weight is: `panels` of them from `panel` on, rows first .. first + depth - 1.
template <typename W>
struct Slice {
  const Weight& weight;
  int64_t panel, panels, first, depth;

  const W* data() const {
    const int64_t offset =
        weight.packed ? (panel * weight.depth + first) * kPanel : first * weight.columns + panel * kPanel;
    return static_cast<const W*>(weight.data) + offset;
  }
  int64_t stride() const { return weight.packed ? kPanel : weight.columns; }
  int64_t panel_stride() const { return weight.packed ? weight.depth * kPanel : kPanel; }
  int64_t columns() const { return std::min(panels * kPanel, weight.columns - panel * kPanel); }
  const BFloat16* scales(int64_t i) const {
    return weight.scales + ((panel + i) * weight.depth + first) / kScaledRows * kPanel;
  }
};

// A slice times the tiles of the block. `a` is the slice of the block's first tile, `copy` holds a slice of floats.
template <class Cut, typename W>
void multiply_slice(const TileLayout& layout, const float* a, const Slice<W>& b, const Slice<W>& next,
                    const GemmBlock& block, float* sums, float* copy) {
  // int8 becomes float here; a panel with fewer columns is filled up; several tiles want rows close together and, if
  // many, floats.
  constexpr bool kScaled = std::is_same_v<W, int8_t>;
  const bool wide = Cut::kPanels > 1 && !std::is_same_v<W, float>;
  const bool copies = kScaled || b.columns() < b.panels * kPanel || (block.tiles > 1 && (wide || !b.weight.packed));
  if (copies) {
    for (int64_t i = 0; i < b.panels; ++i) {
      float* const to = copy + i * b.depth * kPanel;
      if constexpr (kScaled)
        copy_scaled(b.data() + i * b.panel_stride(), b.scales(i), b.depth, to);
      else
        copy_panel(b.data() + i * b.panel_stride(), b.stride(), b.columns() - i * kPanel, b.depth, to);
    }
  }
  Tile tile;
  tile.b = copies ? static_cast<const void*>(copy) : b.data();
  tile.depth = b.depth;
  tile.panels = b.panels;
  tile.b_stride = copies ? kPanel : b.stride();
  tile.b_panel_stride = copies ? b.depth * kPanel : b.panel_stride();
  tile.c_panel_stride = block.row_capacity * kPanel;
  tile.add = b.first > 0;
  const int64_t prefetching = b.weight.packed && !kScaled ? std::min(block.tiles, kPrefetchTiles) : 0;
  const int64_t streams = Cut::kUnroll * kPanel * static_cast<int64_t>(copies ? sizeof(float) : sizeof(W)) / 64;
  tile.next_panel_stride = next.panel_stride() * static_cast<int64_t>(sizeof(W));
  tile.stream_stride = next.depth * kPanel * static_cast<int64_t>(sizeof(W)) / streams;
  tile.stream_step = prefetching == 0 ? 0 : 64 / prefetching;
  for (int64_t i = 0; i < block.tiles; ++i) {
    const int64_t begin = layout.begin(block.first_tile + i), rows = layout.begin(block.first_tile + i + 1) - begin;
    tile.a = a + i * tile_floats(layout);
    tile.next_a = tile.a + tile_floats(layout);
    tile.c = sums + (begin - block.first_row) * kPanel;
    tile.next_b = reinterpret_cast<const char*>(next.data()) + i * tile.stream_step * (b.depth / Cut::kUnroll);
    if constexpr (kScaled) {
      multiply_any_tile<Cut, float>(rows, false, tile);
    } else if (copies) {
      multiply_any_tile<Cut, float>(rows, i < prefetching, tile);
    } else {
      multiply_any_tile<Cut, W>(rows, i < prefetching, tile);
    }
  }
}

template <class Cut, typename W>
void multiply_cut(const TileLayout& layout, const float* a, const Weight* weights, int64_t count,
                  const GemmBlock& block, float* copy) {
  const int64_t slices = (layout.depth + Cut::kDepth - 1) / Cut::kDepth,
                widths = (block.panels + Cut::kPanels - 1) / Cut::kPanels;
  // As many slices of A as the second-level cache holds are multiplied before the next ones.
  const int64_t group = std::clamp<int64_t>(kActivationFloats / (block.tiles * tile_floats(layout)), 1, slices);
  for (int64_t first = 0; first < slices; first += group) {
    const int64_t grouped = std::min(group, slices - first), steps = count * widths * grouped;
    const auto slice_at = [&](int64_t step) {
      const int64_t k = (first + step % grouped) * Cut::kDepth, panel = step / grouped % widths * Cut::kPanels;
      return Slice<W>{weights[step / grouped / widths], block.first_panel + panel,
                      std::min(Cut::kPanels, block.panels - panel), k, std::min(Cut::kDepth, layout.depth - k)};
    };
    for (int64_t step = 0; step < steps; ++step) {
      const Slice<W> slice = slice_at(step), next = slice_at(std::min(step + 1, steps - 1));
      const int64_t panel = step / grouped / widths * block.panels + slice.panel - block.first_panel;
      multiply_slice<Cut>(layout,
                          a + slice.first / Cut::kDepth * slice_floats(layout) + block.first_tile * tile_floats(layout),
                          slice, next, block, block.sums + panel * block.row_capacity * kPanel, copy);
    }
  }
}

// The sums of `block`. `copy` holds kCopyFloats.
template <typename W>
void multiply_block(const TileLayout& layout, const float* a, const Weight* weights, int64_t count,
                    const GemmBlock& block, float* copy) {
  using OfFew = FewRows<std::conditional_t<std::is_same_v<W, int8_t>, float, W>>;
  if (layout.rows <= kFewRows)
    multiply_cut<OfFew, W>(layout, a, weights, count, block, copy);
  else
    multiply_cut<ManyRows, W>(layout, a, weights, count, block, copy);
}
