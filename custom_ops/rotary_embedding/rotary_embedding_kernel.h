// RotaryEmbedding on raw pointers, see rotary_embedding.h. A thread owns whole groups of vectors; 2 * sizeof(T) bytes
// of memory traffic an element, the table stays in the cache.

// One head's vector, half-split. `second` is the offset of the table's entries for the second half: 0 for a half table.
template <typename T, typename W>
ONNXFUSE_INLINE void rotate_halves(const T* x, const W* cos, const W* sin, T* y, int64_t half, int64_t second) {
  for_lanes(half, [&](int64_t i, auto lanes) {
    const Vec a = load(x + i, lanes), b = load(x + half + i, lanes);
    store(y + i, a * load(cos + i, lanes) - b * load(sin + i, lanes), lanes);
    store(y + half + i, b * load(cos + second + i, lanes) + a * load(sin + second + i, lanes), lanes);
  });
}

// One head's vector, interleaved, with one table entry a pair.
template <typename T, typename W>
ONNXFUSE_INLINE void rotate_pairs(const T* x, const W* cos, const W* sin, T* y, int64_t half) {
  for_lanes(half, [&](int64_t i, auto lanes) {
    const Pair v = load_pairs(x + 2 * i, lanes);
    const Vec c = load(cos + i, lanes), s = load(sin + i, lanes);
    store_pairs(y + 2 * i, {v.even * c - v.odd * s, v.odd * c + v.even * s}, lanes);
  });
}

// One head's vector, interleaved, with one table entry a feature.
template <typename T, typename W>
ONNXFUSE_INLINE void rotate_pairs_full_table(const T* x, const W* cos, const W* sin, T* y, int64_t half) {
  for_lanes(half, [&](int64_t i, auto lanes) {
    const Pair v = load_pairs(x + 2 * i, lanes);
    const Pair c = load_pairs(cos + 2 * i, lanes), s = load_pairs(sin + 2 * i, lanes);
    store_pairs(y + 2 * i, {v.even * c.even - v.odd * s.even, v.odd * c.odd + v.even * s.odd}, lanes);
  });
}

template <typename T, typename W>
void rotary_embedding_groups(const T* x, const W* cos, const W* sin, T* y, const RotaryLayout& layout, int64_t begin,
                             int64_t end) {
  const int64_t d = layout.head_size, half = layout.rotary_dim / 2;
  const bool full_table = layout.table_width == layout.rotary_dim;
  x += begin * layout.group_size * d;
  y += begin * layout.group_size * d;
  for (int64_t group = begin; group < end; ++group) {
    int64_t row = group / layout.groups_a_batch * layout.table_batch_step +
                  group % layout.groups_a_batch * layout.table_group_step;
    for (int64_t k = 0; k < layout.group_size; ++k, x += d, y += d, row += layout.table_step) {
      if (!layout.interleaved) {
        rotate_halves(x, cos + row, sin + row, y, half, full_table ? half : 0);
      } else if (full_table) {
        rotate_pairs_full_table(x, cos + row, sin + row, y, half);
      } else {
        rotate_pairs(x, cos + row, sin + row, y, half);
      }
      std::copy(x + 2 * half, x + d, y + 2 * half);
    }
  }
}
