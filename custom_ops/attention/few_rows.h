// Attention of a few rows, as in decoding: a row of scores for each query, next to each other in memory.
// Bound by reading keys and values, which are used where they are. Included by attention_kernel.h.

template <typename T>
class FewRows {
 public:
  explicit FewRows(const Work<T>& work) : w_(work), p_(work.problem), m_(work.memory), rows_(work.rows) {}

  void load_queries() {
    const Vec scale = splat(p_.scale);
    for (int64_t r = 0; r < rows_; ++r) {
      const T* from = w_.q(r);
      float* to = m_.q + r * m_.dims;
      for_lanes(p_.key.size, [&](int64_t d, auto lanes) { store(to + d, load(from + d, lanes) * scale); });
    }
  }

  void block(const T* key, int64_t key_row, const T* value, int64_t value_row, int64_t j, int64_t count) {
    if (rows_ >= kRowsToTranspose) {
      multiply_transposed(key, key_row, j, count);
    } else if (p_.key.size % kLanes == 0) {
      dot_scores(key, key_row, count);
    } else {
      convert_rows(key, key_row, count, p_.key.size, m_.keys, m_.dims);
      dot_scores(m_.keys, m_.dims, count);
    }
    for_tiles(j, count, [&](int64_t r, int64_t rows, int64_t begin, int64_t end) { weigh(r, rows, j, begin, end); });
    // Values are read once a tile of rows; widening them is worth a place of its own if that is more than once.
    if (p_.value.size % kLanes == 0 && (std::is_same_v<T, float> || rows_ <= kTileRows)) {
      add_values(value, value_row, j, count);
    } else {
      convert_rows(value, value_row, count, p_.value.size, m_.values, m_.value_dims);
      add_values(m_.values, m_.value_dims, j, count);
    }
  }

 private:
  static constexpr int64_t kRowsToTranspose = 6;  // from here on it costs less than it saves

  // Calls body(r, rows, begin, end) for tiles of rows: begin..end-1 are the keys of the block that a row of the tile
  // may see, begin a multiple of kLanes.
  template <typename Body>
  void for_tiles(int64_t j, int64_t count, const Body& body) {
    const int64_t height = attention::divide_up(rows_, attention::divide_up(rows_, kTileRows));
    for (int64_t r = 0; r < rows_; r += height) {
      const int64_t rows = std::min(height, rows_ - r);
      const int64_t begin = std::max<int64_t>(m_.first[r] - j, 0), end = std::min(m_.last[r + rows - 1] - j, count);
      if (begin < end) body(r, rows, begin / kLanes * kLanes, end);
    }
  }

  template <typename K>
  void dot_scores(const K* keys, int64_t row, int64_t count) {
    const int64_t dims = attention::round_up(p_.key.size, kLanes);
    dot(rows_, dims, m_.q, m_.dims, keys, row, count, m_.scores, attention::kBlock);
  }

  void multiply_transposed(const T* key, int64_t key_row, int64_t j, int64_t count) {
    constexpr int64_t kPanel = attention::kPanel;
    for (int64_t panel = 0; panel < count; panel += kPanel) {
      const int64_t columns = std::min(kPanel, count - panel);
      transpose_block(key + panel * key_row, key_row, columns, p_.key.size, m_.keys, kPanel);
      for_tiles(j, count, [&](int64_t r, int64_t rows, int64_t begin, int64_t end) {
        begin = std::max(begin, panel), end = std::min(end, panel + columns);
        if (begin >= end) return;
        multiply(rows, attention::divide_up(end - begin, kLanes), p_.key.size, m_.q + r * m_.dims, m_.dims, 1,
                 m_.keys + begin - panel, kPanel, m_.scores + r * attention::kBlock + begin, attention::kBlock,
                 nullptr);
      });
    }
  }

  // out += weights times values.
  template <typename U>
  void add_values(const U* values, int64_t row, int64_t j, int64_t count) {
    for_tiles(j, count, [&](int64_t r, int64_t rows, int64_t begin, int64_t end) {
      multiply(rows, attention::divide_up(p_.value.size, kLanes), end - begin,
               m_.scores + r * attention::kBlock + begin, attention::kBlock, 1, values + begin * row, row,
               m_.out + r * m_.value_dims, m_.value_dims, m_.factors + r);
    });
  }

  // Scores begin..end-1 of some rows against the block at key j -> weights.
  void weigh(int64_t row, int64_t rows, int64_t j, int64_t begin, int64_t end) {
    const int64_t whole = begin + attention::round_up(end - begin, kLanes);
    for (int64_t r = row; r < row + rows; ++r) {
      float* scores = m_.scores + r * attention::kBlock;
      if (p_.softcap > 0) cap(scores + begin, whole - begin, p_.softcap);
      if (p_.bias.narrow) add(scores, begin, end, p_.bias.narrow + w_.bias_offset(r) + j);
      if (p_.bias.single) add(scores, begin, end, p_.bias.single + w_.bias_offset(r) + j);
      if (const float* hidden = w_.visible().hidden) hide(scores, begin, end, hidden + j);
      const int64_t first = std::clamp(m_.first[r] - j, begin, end), last = std::clamp(m_.last[r] - j, first, end);
      std::fill(scores + begin, scores + first, -kInfinity);
      std::fill(scores + last, scores + whole, -kInfinity);
    }
    softmax_rows(rows, m_.scores + row * attention::kBlock + begin, attention::kBlock, whole - begin,
                 {m_.maximum + row, m_.sums + row, m_.factors + row});
  }

  template <typename U>
  static void add(float* scores, int64_t begin, int64_t end, const U* bias) {
    for_lanes(end - begin, [&](int64_t i, auto lanes) {
      store(scores + begin + i, load(scores + begin + i) + load(bias + begin + i, lanes));
    });
  }

  // Not a sum: whatever the score of a hidden key is, a NaN even, it must not count.
  static void hide(float* scores, int64_t begin, int64_t end, const float* hidden) {
    for_lanes(end - begin, [&](int64_t i, auto lanes) {
      const Mask shown = less(splat(-1.0f), load(hidden + begin + i, lanes));
      store(scores + begin + i, select(shown, load(scores + begin + i), splat(-kInfinity)));
    });
  }

  const Work<T>& w_;
  const attention::Problem<T>& p_;
  const attention::Memory& m_;
  const int64_t rows_;
};
