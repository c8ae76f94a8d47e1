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

  void block(Block<T>& block) {
    const int64_t j = block.first, count = block.count;
    for (int64_t i = 0, step = transposes() ? attention::kPanel : kStrip; i < count; i += step) {
      const int64_t keys = std::min(step, count - i);
      w_.begin(block, &block.key, i, keys);
      score(block.key, i, keys, j, count);
    }
    for_tiles(j, count, [&](int64_t r, int64_t rows, int64_t begin, int64_t end) { weigh(r, rows, j, begin, end); });
    for (int64_t i = 0; i < count; i += kStrip) {
      const int64_t values = std::min(kStrip, count - i);
      w_.begin(block, &block.value, i, values);
      add(block.value, i, values, j, count);
    }
  }

 private:
  // Keys and values that are copied, scored or added before the next ones: they stay in the first-level cache.
  static constexpr int64_t kStrip = 32;

  // Whether keys are transposed: that takes a time for each key and feature, where dot() adds up the lanes of its sums
  // for each key and row, which is like eight features.
  bool transposes() const { return rows_ >= std::max(kTileRows, p_.key.size / 8); }

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

  // The scores of all rows against keys i .. i + keys - 1 of the block at key j.
  void score(Side<T>& key, int64_t i, int64_t keys, int64_t j, int64_t count) {
    const T* from = key.at(i);
    if (transposes()) {
      transpose_block(from, key.row, keys, p_.key.size, m_.keys, attention::kPanel, key.ahead);
      multiply_transposed(i, keys, j, count);
    } else if (p_.key.size % kLanes == 0) {
      dot(rows_, p_.key.size, m_.q, m_.dims, from, key.row, keys, m_.scores + i, attention::kBlock, key.ahead);
    } else {
      convert_rows(from, key.row, keys, p_.key.size, m_.keys, m_.dims, key.ahead);
      const int64_t dims = attention::round_up(p_.key.size, kLanes);
      dot(rows_, dims, m_.q, m_.dims, m_.keys, m_.dims, keys, m_.scores + i, attention::kBlock, nothing_ahead_);
    }
  }

  void multiply_transposed(int64_t i, int64_t keys, int64_t j, int64_t count) {
    for_tiles(j, count, [&](int64_t r, int64_t rows, int64_t begin, int64_t end) {
      begin = std::max(begin, i), end = std::min(end, i + keys);
      if (begin >= end) return;
      multiply(rows, attention::divide_up(end - begin, kLanes), p_.key.size, m_.q + r * m_.dims, m_.dims, 1,
               m_.keys + begin - i, attention::kPanel, m_.scores + r * attention::kBlock + begin, attention::kBlock,
               nullptr, nothing_ahead_);
    });
  }

  // out += weights times values i .. i + values - 1 of the block at key j.
  void add(Side<T>& value, int64_t i, int64_t values, int64_t j, int64_t count) {
    const T* from = value.at(i);
    // Values are read once a tile of rows; widening them is worth a place of its own if that is more than once.
    if (p_.value.size % kLanes == 0 && (std::is_same_v<T, float> || rows_ <= kTileRows)) {
      add_values(from, value.row, i, values, j, count, value.ahead);
    } else {
      convert_rows(from, value.row, values, p_.value.size, m_.values, m_.value_dims, value.ahead);
      add_values(m_.values, m_.value_dims, i, values, j, count, nothing_ahead_);
    }
  }

  template <typename U, typename A>
  void add_values(const U* from, int64_t row, int64_t i, int64_t values, int64_t j, int64_t count, A& ahead) {
    static constexpr float kOnes[kTileRows] = {1, 1, 1, 1, 1, 1};
    for_tiles(j, count, [&](int64_t r, int64_t rows, int64_t begin, int64_t end) {
      const int64_t first = std::max(begin, i), last = std::min(end, i + values);
      if (first >= last) return;
      multiply(rows, attention::divide_up(p_.value.size, kLanes), last - first,
               m_.scores + r * attention::kBlock + first, attention::kBlock, 1, from + (first - i) * row, row,
               m_.out + r * m_.value_dims, m_.value_dims, first == begin ? m_.factors + r : kOnes, ahead);
    });
  }

  // Scores begin..end-1 of some rows against the block at key j -> weights.
  void weigh(int64_t row, int64_t rows, int64_t j, int64_t begin, int64_t end) {
    const int64_t whole = begin + attention::round_up(end - begin, kLanes);
    for (int64_t r = row; r < row + rows; ++r) {
      float* scores = m_.scores + r * attention::kBlock;
      if (p_.softcap > 0) cap(scores + begin, whole - begin, p_.softcap);
      if (p_.bias.narrow) add_bias(scores, begin, end, p_.bias.narrow + w_.bias_offset(r) + j);
      if (p_.bias.single) add_bias(scores, begin, end, p_.bias.single + w_.bias_offset(r) + j);
      if (const float* hidden = w_.visible().hidden) hide(scores, begin, end, hidden + j);
      const int64_t first = std::clamp(m_.first[r] - j, begin, end), last = std::clamp(m_.last[r] - j, first, end);
      std::fill(scores + begin, scores + first, -kInfinity);
      std::fill(scores + last, scores + whole, -kInfinity);
    }
    softmax_rows(rows, m_.scores + row * attention::kBlock + begin, attention::kBlock, whole - begin,
                 {m_.maximum + row, m_.sums + row, m_.factors + row});
  }

  template <typename U>
  static void add_bias(float* scores, int64_t begin, int64_t end, const U* bias) {
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
  NothingAhead nothing_ahead_;
};
