// Attention of many rows, as for a prompt: bound by arithmetic. Rows are the columns here. Scores stand as [keys,
// rows], because then a tile needs no transposed keys, and softmax goes down the lanes. Included by attention_kernel.h.

inline constexpr int64_t kManyRows = 24;  // fewer would leave too many lanes empty

template <typename T>
class ManyRows {
 public:
  explicit ManyRows(const Work<T>& work) : w_(work), p_(work.problem), m_(work.memory), rows_(work.rows) {}

  // q of each panel of rows as [D, kWidth]; rows beyond the last are zeros that see what the last row sees.
  void load_queries() {
    const Vec scale = splat(p_.scale);
    const int64_t padded = attention::round_up(rows_, kWidth);
    for (int64_t r = 0; r < padded; r += kLanes) {
      const T* from[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) from[i] = w_.q(std::min(r + i, rows_ - 1));
      float* to = m_.q + r / kWidth * kWidth * p_.key.size + r % kWidth;
      for_lanes(p_.key.size, [&](int64_t d, auto lanes) {
        Vec square[kLanes];
        for (int64_t i = 0; i < kLanes; ++i) square[i] = load(from[i] + d, lanes) * scale;
        transpose(square);
        for (int64_t i = 0; i < std::min(kLanes, p_.key.size - d); ++i) store(to + (d + i) * kWidth, square[i]);
      });
    }
    for (int64_t r = rows_; r < padded; ++r) {
      m_.first[r] = m_.first[rows_ - 1];
      m_.last[r] = m_.last[rows_ - 1];
      m_.maximum[r] = -kInfinity;
      m_.sums[r] = 0.0f;
    }
  }

  void block(Block<T>& block) {
    w_.copy(block);
    const int64_t j = block.first, count = block.count;
    int64_t key_row = block.key.row;
    const float* keys = as_float(block.key.data, &key_row, count);
    pack_values(block.value.data, block.value.row, count);
    for (int64_t r = 0; r < rows_; r += kWidth) {
      const int64_t end_row = std::min(r + kWidth, rows_);
      const int64_t begin = std::max<int64_t>(m_.first[r] - j, 0), end = std::min(m_.last[end_row - 1] - j, count);
      if (begin >= end) continue;
      scores(r, end_row - r, keys, key_row, j, begin, end);
      weigh(r, end_row - r, j, begin, end);
      add_values(r, end_row, j, begin, end);
    }
  }

 private:
  static constexpr int64_t kWidth = kTileVectors * kLanes;  // rows of a panel

  // Keys begin..end-1 of the block against the panel at row r.
  void scores(int64_t r, int64_t rows, const float* keys, int64_t key_row, int64_t j, int64_t begin, int64_t end) {
    const int64_t vectors = attention::divide_up(rows, kLanes);
    const float* q = m_.q + r * p_.key.size;
    int64_t first = 0, last = 0;  // the vectors with rows that see a key of the tile
    for (int64_t i = begin; i < end; i += kTileRows) {
      while (first < vectors && m_.last[r + first * kLanes + kLanes - 1] <= j + i) ++first;
      while (last < vectors && m_.first[r + last * kLanes] < j + i + kTileRows) ++last;
      if (first >= last) continue;
      multiply(std::min(kTileRows, end - i), last - first, p_.key.size, keys + i * key_row, key_row, 1,
               q + first * kLanes, kWidth, m_.scores + i * kWidth + first * kLanes, kWidth, nullptr, nothing_ahead_);
    }
  }

  void weigh(int64_t r, int64_t rows, int64_t j, int64_t begin, int64_t end) {
    const int64_t width = attention::round_up(rows, kLanes);
    float* scores = m_.scores + begin * kWidth;
    if (p_.softcap > 0) {
      for (int64_t i = 0; i < end - begin; ++i) cap(scores + i * kWidth, width, p_.softcap);
    }
    if (p_.bias.narrow) add(r, rows, j, begin, end, p_.bias.narrow);
    if (p_.bias.single) add(r, rows, j, begin, end, p_.bias.single);
    if (const float* hidden = w_.visible().hidden) {
      for (int64_t i = begin; i < end; ++i)
        if (hidden[j + i] != 0) std::fill_n(m_.scores + i * kWidth, width, -kInfinity);
    }
    if (m_.first[r + rows - 1] > j + begin || m_.last[r] < j + end) hide(r, width, j, begin, end);
    softmax_columns(width / kLanes, scores, kWidth, end - begin, {m_.maximum + r, m_.sums + r, m_.factors + r});
  }

  // Sets the scores of keys outside the rows' ranges, computed or not.
  void hide(int64_t r, int64_t width, int64_t j, int64_t begin, int64_t end) {
    for (int64_t column = 0; column < width; column += kLanes) {
      float first[kLanes], last[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        first[i] = static_cast<float>(std::clamp(m_.first[r + column + i] - j, begin, end));
        last[i] = static_cast<float>(std::clamp(m_.last[r + column + i] - j, begin, end));
      }
      const Vec lower = load(first), upper = load(last), hidden = splat(-kInfinity);
      for (int64_t i = begin; i < end; ++i) {
        const Vec key = splat(static_cast<float>(i));
        float* scores = m_.scores + i * kWidth + column;
        store(scores, select(less(key, lower), hidden, select(less(key, upper), load(scores), hidden)));
      }
    }
  }

  template <typename U>
  void add(int64_t r, int64_t rows, int64_t j, int64_t begin, int64_t end, const U* bias) {
    for (int64_t column = 0; column < rows; column += kLanes) {
      const U* from[kLanes];
      for (int64_t i = 0; i < kLanes; ++i)
        from[i] = bias + w_.bias_offset(r + std::min(column + i, rows - 1)) + j + begin;
      float* scores = m_.scores + begin * kWidth + column;
      for_lanes(end - begin, [&](int64_t key, auto lanes) {
        Vec square[kLanes];
        for (int64_t i = 0; i < kLanes; ++i) square[i] = load(from[i] + key, lanes);
        transpose(square);
        for (int64_t i = 0; i < std::min(kLanes, end - begin - key); ++i)
          store(scores + (key + i) * kWidth, load(scores + (key + i) * kWidth) + square[i]);
      });
    }
  }

  // out += weights times values, for the rows of a panel.
  void add_values(int64_t panel, int64_t end_row, int64_t j, int64_t panel_begin, int64_t panel_end) {
    for (int64_t r = panel; r < end_row; r += kTileRows) {
      const int64_t rows = std::min(kTileRows, end_row - r);
      const int64_t begin = std::max(m_.first[r] - j, panel_begin);
      const int64_t end = std::min(m_.last[r + rows - 1] - j, panel_end);
      for (int64_t d = 0; d < p_.value.size; d += attention::kPanel) {
        const int64_t columns = std::min(p_.value.size - d, attention::kPanel);
        multiply(rows, attention::divide_up(columns, kLanes), std::max<int64_t>(end - begin, 0),
                 m_.scores + begin * kWidth + r - panel, 1, kWidth,
                 m_.values + d * attention::kBlock + begin * attention::kPanel, attention::kPanel,
                 m_.out + r * m_.value_dims + d, m_.value_dims, m_.factors + r, nothing_ahead_);
      }
    }
  }

  // Panels of kPanel features, [kBlock, kPanel] each: rows of the cache can be so far apart that they fall on few sets
  // of the first-level cache.
  void pack_values(const T* value, int64_t row, int64_t count) {
    for (int64_t d = 0; d < p_.value.size; d += attention::kPanel)
      convert_rows(value + d, row, count, std::min(p_.value.size - d, attention::kPanel),
                   m_.values + d * attention::kBlock, attention::kPanel, nothing_ahead_);
  }

  const float* as_float(const T* key, int64_t* row, int64_t count) {
    if constexpr (std::is_same_v<T, float>) {
      return key;
    } else {
      convert_rows(key, *row, count, p_.key.size, m_.keys, m_.dims, nothing_ahead_);
      *row = m_.dims;
      return m_.keys;
    }
  }

  const Work<T>& w_;
  const attention::Problem<T>& p_;
  const attention::Memory& m_;
  const int64_t rows_;
  NothingAhead nothing_ahead_;
};
