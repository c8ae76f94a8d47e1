// The blocked product of gemm.h for one SIMD target.
//
// A tile of kTileRows x (kTileVectors * kLanes) sums lives in registers while k runs over a slice: kSliceDepth rows of
// a panel. The slice (16 KB) and the tile of A (7 KB) stay in the first-level cache, the other tiles of A in the
// second. While a tile is computed, the next tile of A and its share of the next slice are prefetched.

inline constexpr int kTileVectors = kLanes == 1 ? 4 : 2;
inline constexpr int kTileRows = kLanes == 16 ? 12 : kLanes == 8 ? 6 : 4;

struct Tile {
  const float* a;  // [rows][kTileStride]
  const void* b;   // `depth` rows of a panel, b_stride elements apart
  int64_t b_stride, depth;
  float* c;  // [rows][kPanel]
  bool add;  // to what c holds; else c is overwritten
  const char* next_b;
  int64_t next_step;  // bytes of next_b to prefetch for each k
};

template <int kRows, typename W>
void multiply_tile(const Tile& tile) {
  for (int64_t column = 0; column < kPanel; column += kTileVectors * kLanes) {
    Vec sums[kRows][kTileVectors];
    ONNXFUSE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      ONNXFUSE_UNROLL
      for (int v = 0; v < kTileVectors; ++v) sums[r][v] = splat(0);
    }
    const float* a = tile.a;
    const W* b = static_cast<const W*>(tile.b) + column;
    const char* next_a = reinterpret_cast<const char*>(tile.a + kTileRows * kTileStride);
    const char* next_b = tile.next_b;
    for (int64_t k = 0; k < tile.depth; ++k) {
      __builtin_prefetch(next_a, 0, 3);
      __builtin_prefetch(next_b, 0, 2);
      __builtin_prefetch(next_b + 64, 0, 2);
      Vec w[kTileVectors];
      ONNXFUSE_UNROLL
      for (int v = 0; v < kTileVectors; ++v) w[v] = load(b + v * kLanes);
      ONNXFUSE_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const Vec x = splat(a[r * kTileStride]);
        ONNXFUSE_UNROLL
        for (int v = 0; v < kTileVectors; ++v) sums[r][v] = fma(x, w[v], sums[r][v]);
      }
      ++a;
      b += tile.b_stride;
      next_a += kTileRows * sizeof(float);
      next_b += tile.next_step;
    }
    ONNXFUSE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      ONNXFUSE_UNROLL
      for (int v = 0; v < kTileVectors; ++v) {
        float* c = tile.c + r * kPanel + column + v * kLanes;
        store(c, tile.add ? load(c) + sums[r][v] : sums[r][v]);
      }
    }
  }
}

template <typename W, int... kIndices>
void multiply_tile_of(int64_t rows, const Tile& tile, std::integer_sequence<int, kIndices...>) {
  static constexpr void (*kByRows[])(const Tile&) = {multiply_tile<kIndices + 1, W>...};
  kByRows[rows - 1](tile);
}

// Rows of A, spread evenly over as few tiles as hold them.
struct Tiles {
  int64_t rows;

  int64_t count() const { return (rows + kTileRows - 1) / kTileRows; }
  int64_t begin(int64_t tile) const { return rows * tile / count(); }
  int64_t floats() const { return count() * kTileRows * kTileStride; }  // of a slice
};

// Copies columns [0, depth) of `a` into tiles.
template <typename T>
void copy_activations(const T* a, int64_t a_stride, const Tiles& tiles, int64_t depth, float* to) {
  for (int64_t tile = 0; tile < tiles.count(); ++tile) {
    float* out = to + tile * kTileRows * kTileStride;
    for (int64_t row = tiles.begin(tile); row < tiles.begin(tile + 1); ++row, out += kTileStride) {
      const T* in = a + row * a_stride;
      for_lanes(depth, [&](int64_t k, auto lanes) { store(out + k, load(in + k, lanes), lanes); });
    }
  }
}

// Copies a slice of a panel; columns from `columns` on become zeros.
template <typename W>
void copy_slice(const W* b, int64_t b_stride, int64_t columns, int64_t depth, float* to) {
  for (int64_t k = 0; k < depth; ++k, b += b_stride, to += kPanel) {
    if (columns >= kPanel) {
      for (int64_t j = 0; j < kPanel; j += kLanes) store(to + j, load(b + j));
    } else {
      for (int64_t j = 0; j < kPanel; ++j) to[j] = j < columns ? to_float(b[j]) : 0.0f;
    }
  }
}

// One slice of one panel times all tiles.
template <typename W>
void multiply_slice(const float* a, const Tiles& tiles, const W* b, int64_t b_stride, int64_t columns, int64_t depth,
                    const void* next_b, float* sums, bool add, float* copy) {
  const bool copies = columns < kPanel || (tiles.count() > 1 && (b_stride != kPanel || !std::is_same_v<W, float>));
  if (copies) copy_slice(b, b_stride, columns, depth, copy);
  const int64_t next_step = kPanel * static_cast<int64_t>(sizeof(W)) / tiles.count();
  for (int64_t i = 0; i < tiles.count(); ++i) {
    Tile tile;
    tile.a = a + i * kTileRows * kTileStride;
    tile.b = copies ? static_cast<const void*>(copy) : b;
    tile.b_stride = copies ? kPanel : b_stride;
    tile.depth = depth;
    tile.c = sums + tiles.begin(i) * kPanel;
    tile.add = add;
    tile.next_b = static_cast<const char*>(next_b) + i * depth * next_step;
    tile.next_step = next_step;
    const int64_t rows = tiles.begin(i + 1) - tiles.begin(i);
    constexpr std::make_integer_sequence<int, kTileRows> all_rows;
    if (copies)
      multiply_tile_of<float>(rows, tile, all_rows);
    else
      multiply_tile_of<W>(rows, tile, all_rows);
  }
}

// The sums of `block`; `a` is its first row. `scratch` holds kActivationFloats + kCopyFloats.
template <typename T, typename W>
void multiply_block(const void* a, const Weight* weights, int64_t count, const GemmBlock& block, float* scratch) {
  const int64_t depth = weights->depth, slices = (depth + kSliceDepth - 1) / kSliceDepth;
  const Tiles tiles{block.rows};
  if (depth == 0) std::fill_n(block.sums, count * block.panels * block.rows * kPanel, 0.0f);

  // As many slices of A as the second-level cache holds are multiplied before the next ones.
  const int64_t group = std::clamp<int64_t>(kActivationFloats / tiles.floats(), 1, std::max<int64_t>(slices, 1));
  for (int64_t first = 0; first < slices; first += group) {
    const int64_t grouped = std::min(group, slices - first);
    const auto slice_depth = [&](int64_t s) { return std::min(kSliceDepth, depth - s * kSliceDepth); };
    for (int64_t s = first; s < first + grouped; ++s)
      copy_activations(static_cast<const T*>(a) + s * kSliceDepth, depth, tiles, slice_depth(s),
                       scratch + (s - first) * tiles.floats());

    // Step i multiplies slice i % grouped of weight i / grouped % count of the panel that is left.
    const auto weight_at = [&](int64_t i) -> const Weight& { return weights[i / grouped % count]; };
    const auto panel_at = [&](int64_t i) { return block.first_panel + i / grouped / count; };
    const auto slice_at = [&](int64_t i) {
      const Weight& weight = weight_at(i);
      const int64_t k = (first + i % grouped) * kSliceDepth, panel = panel_at(i);
      const int64_t offset = weight.packed ? (panel * depth + k) * kPanel : k * weight.columns + panel * kPanel;
      return static_cast<const W*>(weight.data) + offset;
    };
    const int64_t steps = grouped * count * block.panels;
    for (int64_t i = 0; i < steps; ++i) {
      const Weight& weight = weight_at(i);
      const int64_t s = first + i % grouped, panel = panel_at(i);
      float* sums =
          block.sums + ((i / grouped % count) * block.panels + panel - block.first_panel) * block.rows * kPanel;
      multiply_slice(scratch + (s - first) * tiles.floats(), tiles, slice_at(i),
                     weight.packed ? kPanel : weight.columns, weight.columns - panel * kPanel, slice_depth(s),
                     slice_at(std::min(i + 1, steps - 1)), sums, s > 0, scratch + kActivationFloats);
    }
  }
}
