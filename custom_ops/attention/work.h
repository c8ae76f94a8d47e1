// What all ways of attending share: a task, its rows, its results. Included by attention_kernel.h.

// Copies bytes past the caches.
inline void stream_bytes(const char* from, char* to, int64_t count, Ahead& ahead) {
  constexpr int64_t kStep = kLanes * sizeof(float), kSteps = 8;
  const int64_t unaligned = std::min<int64_t>(-reinterpret_cast<uintptr_t>(to) & (kStep - 1), count);
  std::copy_n(from, unaligned, to);
  int64_t i = unaligned;
  while (i + kStep <= count) {
    const int64_t end = std::min(i + kSteps * kStep, count - kStep + 1);
    ahead.read(kSteps * kStep);
    for (; i < end; i += kStep)
      stream(reinterpret_cast<float*>(to + i), load(reinterpret_cast<const float*>(from + i)));
  }
  std::copy_n(from + i, count - i, to + i);
}

// The keys, or the values, of a block.
template <typename T>
struct Side {
  const attention::Cache<T>* cache;
  const T* data;
  int64_t row;  // stride
  bool copies;  // to present
  Ahead ahead;  // for the block after this one

  const T* at(int64_t i) const { return data + i * row; }
};

// Keys first .. first + count - 1, at most kBlock of them, all of the past or all new.
template <typename T>
struct Block {
  int64_t first, count;
  Side<T> key, value;
};

template <typename T>
struct Work {
  const attention::Problem<T>& problem;
  const attention::Task& task;
  const attention::Task* following;  // what this thread attends to next, if that is known
  const attention::Memory& memory;
  int64_t rows;

  int64_t query(int64_t r) const { return (task.row_begin + r) / problem.group(); }
  int64_t head(int64_t r) const { return task.head * problem.group() + (task.row_begin + r) % problem.group(); }
  const T* q(int64_t r) const { return problem.q.at(task.batch, head(r), query(r)); }
  int64_t bias_offset(int64_t r) const {
    return task.batch * problem.bias.batch + head(r) * problem.bias.head + query(r) * problem.bias.row;
  }
  const attention::Visible& visible() const { return problem.visible[task.batch]; }

  void prepare() const {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t diagonal = query(r) + problem.keys() - problem.queries;
      const int64_t first = diagonal - problem.window + 1;
      memory.first[r] = problem.window > 0 ? std::max(visible().first, first) : visible().first;
      memory.last[r] = problem.causal ? std::min(visible().last, diagonal + 1) : visible().last;
    }
    std::fill_n(memory.maximum, rows, -kInfinity);
    std::fill_n(memory.sums, rows, 0.0f);
    std::fill_n(memory.out, rows * memory.value_dims, 0.0f);
  }

  // Has the block of past keys after `block` prefetched while that is read. New ones are in the caches still.
  void look_ahead(Block<T>* block) const {
    const attention::Task* of = &task;
    int64_t first = block->first + block->count;
    if (first >= std::min(task.key_end, problem.past)) {
      if (following == nullptr) return;
      of = following;
      first = of->key_begin;
    }
    const int64_t count = std::min(attention::kBlock, std::min(of->key_end, problem.past) - first);
    if (count <= 0) return;
    for (Side<T>* side : {&block->key, &block->value}) {
      const attention::Rows<const T>& past = side->cache->past;
      const int64_t size = side->cache->size;
      side->ahead = Ahead(region_of(past.at(of->batch, of->head, first), size, past.row, count),
                          block->count * size * static_cast<int64_t>(sizeof(T)));
    }
  }

  // Rows i .. i + count - 1 of a block are worked on next: copies them first, so that they come from memory once.
  void begin(const Block<T>& block, Side<T>* side, int64_t i, int64_t count) const {
    const int64_t size = side->cache->size;
    side->ahead.begin(count * size * static_cast<int64_t>(sizeof(T)));
    if (!side->copies) return;
    const attention::Rows<T>& present = side->cache->present;
    const T* from = side->at(i);
    T* to = present.at(task.batch, task.head, block.first + i);
    if (side->row == size && present.row == size) {
      copy_run(from, to, count * size, side->ahead);
    } else {
      for (int64_t k = 0; k < count; ++k) copy_run(from + k * side->row, to + k * present.row, size, side->ahead);
    }
  }

  void copy(Block<T>& block) const {
    begin(block, &block.key, 0, block.count);
    begin(block, &block.value, 0, block.count);
  }

  void copy_run(const T* from, T* to, int64_t count, Ahead& ahead) const {
    if (task.streams) {
      stream_bytes(reinterpret_cast<const char*>(from), reinterpret_cast<char*>(to), count * sizeof(T), ahead);
    } else {
      ahead.read(count * sizeof(T));
      std::copy_n(from, count, to);
    }
  }

  // y = out / sum; a row that has seen no key gives zeros.
  void store_row(int64_t r, const float* out, float sum) const {
    T* y = problem.y.at(task.batch, head(r), query(r));
    const Vec factor = splat(sum == 0 ? 0.0f : 1.0f / sum);
    for_lanes(problem.value.size, [&](int64_t d, auto lanes) { store(y + d, load(out + d) * factor, lanes); });
  }

  void store_output() const {
    for (int64_t r = 0; r < rows; ++r) store_row(r, memory.out + r * memory.value_dims, memory.sums[r]);
  }

  void store_partial() const {
    attention::Partial partial(task.partial, rows, memory.value_dims);
    std::copy_n(memory.out, rows * memory.value_dims, partial.out);
    std::copy_n(memory.maximum, rows, partial.maximum);
    std::copy_n(memory.sums, rows, partial.sum);
  }
};
