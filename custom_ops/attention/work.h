// What all ways of attending share: a task, its rows, its results. Included by attention_kernel.h.

// Copies bytes past the caches.
inline void stream_bytes(const char* from, char* to, int64_t count) {
  constexpr int64_t kStep = kLanes * sizeof(float);
  const int64_t ahead = std::min<int64_t>(-reinterpret_cast<uintptr_t>(to) & (kStep - 1), count);
  std::copy_n(from, ahead, to);
  int64_t i = ahead;
  for (; i + kStep <= count; i += kStep)
    stream(reinterpret_cast<float*>(to + i), load(reinterpret_cast<const float*>(from + i)));
  std::copy_n(from + i, count - i, to + i);
}

template <typename T>
struct Work {
  const attention::Problem<T>& problem;
  const attention::Task& task;
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

  void copy(const attention::Cache<T>& cache, const T* from, int64_t from_row, int64_t j, int64_t count) const {
    T* to = cache.present.at(task.batch, task.head, j);
    const int64_t to_row = cache.present.row;
    if (from_row == cache.size && to_row == cache.size) {
      copy_run(from, to, count * cache.size);
    } else {
      for (int64_t i = 0; i < count; ++i) copy_run(from + i * from_row, to + i * to_row, cache.size);
    }
  }

  void copy_run(const T* from, T* to, int64_t count) const {
    if (task.streams) {
      stream_bytes(reinterpret_cast<const char*>(from), reinterpret_cast<char*>(to), count * sizeof(T));
    } else {
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
