// Attention on raw pointers, see attention.h. A thread owns some rows of one key-value head and a range of its keys,
// which it goes through in blocks: scores of all rows against the block, softmax weights, weighted sum of the values.
// The score matrix never exists beyond a block. Blocks and keys that no row of a tile sees are skipped.
// Memory traffic: each key and value is read once for every Plan::kRows rows, and written once where present wants it.

#include "attention/copy.h"
//
#include "attention/tiles.h"
//
#include "attention/softmax.h"

// From so many rows on, rearranging a block costs less than it saves.
inline constexpr int64_t kRowsToTransposeKeys = 6;
inline constexpr int64_t kRowsToPackValues = 24;

// y = out / sum; a row that has seen no key gives zeros.
template <typename T>
void store_row(const float* out, float sum, T* y, int64_t size) {
  const Vec factor = splat(sum == 0 ? 0.0f : 1.0f / sum);
  for_lanes(size, [&](int64_t d, auto lanes) { store(y + d, load(out + d) * factor, lanes); });
}

template <typename T>
class Attend {
 public:
  Attend(const attention::Problem<T>& problem, const attention::Task& task, const attention::Memory& memory)
      : p_(problem), t_(task), m_(memory), rows_(task.rows()) {}

  void run() {
    if (rows_ > 0) prepare_rows();
    segment(p_.key.past, p_.value.past, 0, p_.past, t_.copies && p_.key.moves(), t_.copies && p_.value.moves());
    segment(p_.key.fresh, p_.value.fresh, p_.past, p_.keys(), t_.copies && p_.key.present.data,
            t_.copies && p_.value.present.data);
    if (t_.streams) stream_fence();
    if (t_.partial) {
      store_partial();
    } else {
      for (int64_t r = 0; r < rows_; ++r)
        store_row(m_.out + r * m_.value_dims, sum_of(r), p_.y.at(t_.batch, head(r), query(r)), p_.value.size);
    }
  }

 private:
  int64_t query(int64_t r) const { return (t_.row_begin + r) / p_.group(); }
  int64_t head(int64_t r) const { return t_.head * p_.group() + (t_.row_begin + r) % p_.group(); }
  float sum_of(int64_t r) const { return sum(load(m_.sums + r * attention::kWidest)); }

  void prepare_rows() {
    if (rows_ == 0) return;  // a task that only copies has no memory
    const attention::Visible& visible = p_.visible[t_.batch];
    const Vec scale = splat(p_.scale);
    for (int64_t r = 0; r < rows_; ++r) {
      const T* from = p_.q.at(t_.batch, head(r), query(r));
      float* to = m_.q + r * m_.dims;
      std::fill(to + p_.key.size, to + m_.dims, 0.0f);
      for_lanes(p_.key.size, [&](int64_t d, auto lanes) { store(to + d, load(from + d, lanes) * scale); });

      const int64_t diagonal = query(r) + p_.keys() - p_.queries;
      m_.first[r] = p_.window > 0 ? std::max(visible.first, diagonal - p_.window + 1) : visible.first;
      m_.last[r] = p_.causal ? std::min(visible.last, diagonal + 1) : visible.last;
      m_.maximum[r] = -kInfinity;
    }
    std::fill_n(m_.sums, rows_ * attention::kWidest, 0.0f);
    std::fill_n(m_.out, rows_ * m_.value_dims, 0.0f);
    if (p_.value.size < m_.value_dims || p_.key.size < m_.dims) {  // padding must not turn into NaN
      std::fill_n(m_.keys, attention::kBlock * m_.dims, 0.0f);
      std::fill_n(m_.values, attention::kBlock * attention::round_up(m_.value_dims, attention::kPanel), 0.0f);
    }
  }

  // The part of the task's keys that is in `keys` and `values`, whose first row is key `begin`.
  void segment(const attention::Rows<const T>& keys, const attention::Rows<const T>& values, int64_t begin, int64_t end,
               bool copies_keys, bool copies_values) {
    const int64_t first = std::max(begin, t_.key_begin), last = std::min(end, t_.key_end);
    for (int64_t j = first; j < last; j += attention::kBlock) {
      const int64_t count = std::min(attention::kBlock, last - j);
      const T* key = keys.at(t_.batch, t_.head, j - begin);
      const T* value = values.at(t_.batch, t_.head, j - begin);
      if (copies_keys) copy(p_.key, key, keys.row, j, count);
      if (copies_values) copy(p_.value, value, values.row, j, count);
      if (rows_ > 0 && m_.first[0] < j + count && j < m_.last[rows_ - 1])
        block(key, keys.row, value, values.row, j, count);
    }
  }

  void copy(const attention::Cache<T>& cache, const T* from, int64_t from_row, int64_t j, int64_t count) {
    T* to = cache.present.at(t_.batch, t_.head, j);
    const int64_t to_row = cache.present.row;
    if (from_row == cache.size && to_row == cache.size) {
      copy_run(from, to, count * cache.size);
    } else {
      for (int64_t i = 0; i < count; ++i) copy_run(from + i * from_row, to + i * to_row, cache.size);
    }
  }

  void copy_run(const T* from, T* to, int64_t count) {
    if (t_.streams) {
      stream_bytes(reinterpret_cast<const char*>(from), reinterpret_cast<char*>(to), count * sizeof(T));
    } else {
      std::copy_n(from, count, to);
    }
  }

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

  void block(const T* key, int64_t key_row, const T* value, int64_t value_row, int64_t j, int64_t count) {
    scores(key, key_row, j, count);
    for_tiles(j, count, [&](int64_t r, int64_t rows, int64_t begin, int64_t end) { weigh(r, rows, j, begin, end); });
    add_values(value, value_row, j, count);
  }

  void scores(const T* key, int64_t key_row, int64_t j, int64_t count) {
    if (rows_ < kRowsToTransposeKeys) {
      const float* rows = as_float(key, &key_row, count, p_.key.size, m_.dims, m_.keys);
      dot(rows_, attention::round_up(p_.key.size, kLanes), m_.q, m_.dims, rows, key_row, count, m_.scores,
          attention::kBlock);
      return;
    }
    for (int64_t panel = 0; panel < count; panel += attention::kPanel) {
      const int64_t columns = std::min(attention::kPanel, count - panel);
      transpose_block(key + panel * key_row, key_row, columns, p_.key.size, m_.keys, attention::kPanel);
      for_tiles(j, count, [&](int64_t r, int64_t rows, int64_t begin, int64_t end) {
        begin = std::max(begin, panel), end = std::min(end, panel + columns);
        if (begin >= end) return;
        multiply(rows, attention::divide_up(end - begin, kLanes), p_.key.size, m_.q + r * m_.dims, m_.dims,
                 m_.keys + begin - panel, attention::kPanel, m_.scores + r * attention::kBlock + begin,
                 attention::kBlock, nullptr);
      });
    }
  }

  // Scores begin..end-1 of rows against the block at key j -> weights.
  void weigh(int64_t row, int64_t rows, int64_t j, int64_t begin, int64_t end) {
    const int64_t whole = begin + attention::round_up(end - begin, kLanes);
    float* scores = m_.scores + row * attention::kBlock;
    if (changes_scores_) {
      for (int64_t r = 0; r < rows; ++r) change(row + r, j, begin, end, scores + r * attention::kBlock);
    }
    if (m_.first[row + rows - 1] > j + begin || m_.last[row] < j + end || end < whole) {
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t first = std::clamp(m_.first[row + r] - j, begin, end);
        const int64_t last = std::clamp(m_.last[row + r] - j, first, end);
        std::fill(scores + r * attention::kBlock + begin, scores + r * attention::kBlock + first, -kInfinity);
        std::fill(scores + r * attention::kBlock + last, scores + r * attention::kBlock + whole, -kInfinity);
      }
    }
    softmax_step(rows, scores + begin, attention::kBlock, whole - begin, m_.maximum + row,
                 m_.sums + row * attention::kWidest, attention::kWidest, m_.factors + row);
  }

  // Soft cap, bias and padding for the scores of row r.
  void change(int64_t r, int64_t j, int64_t begin, int64_t end, float* scores) const {
    if (p_.softcap > 0) cap(scores, begin, end);
    const int64_t bias = t_.batch * p_.bias.batch + head(r) * p_.bias.head + query(r) * p_.bias.row + j;
    if (p_.bias.narrow) add(scores, begin, end, p_.bias.narrow + bias);
    if (p_.bias.single) add(scores, begin, end, p_.bias.single + bias);
    if (const float* hidden = p_.visible[t_.batch].hidden) hide(scores, begin, end, hidden + j);
  }

  void cap(float* scores, int64_t begin, int64_t end) const {
    const Vec cap = splat(p_.softcap), inverse = splat(1.0f / p_.softcap);
    for (int64_t i = begin; i < end; i += kLanes) store(scores + i, cap * tanh(load(scores + i) * inverse));
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

  // out += weights times values.
  void add_values(const T* value, int64_t value_row, int64_t j, int64_t count) {
    if (rows_ < kRowsToPackValues) {
      const float* rows = as_float(value, &value_row, count, p_.value.size, m_.value_dims, m_.values);
      multiply_values(rows, value_row, j, count, 0, attention::round_up(p_.value.size, kLanes));
      return;
    }
    for (int64_t d = 0; d < p_.value.size; d += attention::kPanel) {
      const int64_t columns = std::min(attention::kPanel, p_.value.size - d);
      convert_rows(value + d, value_row, count, columns, m_.values, attention::kPanel);
      multiply_values(m_.values, attention::kPanel, j, count, d, attention::round_up(columns, kLanes));
    }
  }

  void multiply_values(const float* values, int64_t row, int64_t j, int64_t count, int64_t d, int64_t columns) {
    for_tiles(j, count, [&](int64_t r, int64_t rows, int64_t begin, int64_t end) {
      multiply(rows, columns / kLanes, end - begin, m_.scores + r * attention::kBlock + begin, attention::kBlock,
               values + begin * row, row, m_.out + r * m_.value_dims + d, m_.value_dims, m_.factors + r);
    });
  }

  // Rows in float32 that can be read up to a whole vector: these ones if they are, else converted ones.
  static const float* as_float(const T* from, int64_t* row, int64_t count, int64_t size, int64_t padded,
                               float* converted) {
    if constexpr (std::is_same_v<T, float>) {
      if (size % kLanes == 0) return from;
    }
    convert_rows(from, *row, count, size, converted, padded);
    *row = padded;
    return converted;
  }

  void store_partial() {
    attention::Partial partial(t_.partial, rows_, m_.value_dims);
    std::copy_n(m_.out, rows_ * m_.value_dims, partial.out);
    std::copy_n(m_.maximum, rows_, partial.maximum);
    for (int64_t r = 0; r < rows_; ++r) partial.sum[r] = sum_of(r);
  }

  const attention::Problem<T>& p_;
  const attention::Task& t_;
  const attention::Memory& m_;
  const int64_t rows_;
  const bool changes_scores_ = p_.softcap > 0 || p_.bias.narrow || p_.bias.single || p_.visible[t_.batch].hidden;
};

template <typename T>
void attend(const attention::Problem<T>& problem, const attention::Task& task, const attention::Memory& memory) {
  Attend<T>(problem, task, memory).run();
}

// Merges the `parts` partial results for the rows of `task`, which lie one after the other, into y.
template <typename T>
void combine(const attention::Problem<T>& problem, const attention::Task& task, int64_t parts, float* partials,
             const attention::Memory& memory) {
  const int64_t rows = task.rows(), dims = memory.value_dims, stride = attention::Partial::floats(rows, dims);
  for (int64_t r = 0; r < rows; ++r) {
    float maximum = -kInfinity, total = 0.0f;
    for (int64_t i = 0; i < parts; ++i)
      maximum = std::max(maximum, attention::Partial(partials + i * stride, rows, dims).maximum[r]);
    std::fill_n(memory.out, dims, 0.0f);
    for (int64_t i = 0; i < parts; ++i) {
      const attention::Partial part(partials + i * stride, rows, dims);
      if (part.sum[r] == 0) continue;
      const Vec weight = exp_negative(splat(part.maximum[r] - maximum));
      total += largest(weight) * part.sum[r];
      for (int64_t d = 0; d < dims; d += kLanes)
        store(memory.out + d, fma(weight, load(part.out + r * dims + d), load(memory.out + d)));
    }
    const int64_t row = task.row_begin + r, group = problem.group();
    store_row(memory.out, total, problem.y.at(task.batch, task.head * group + row % group, row / group),
              problem.value.size);
  }
}
