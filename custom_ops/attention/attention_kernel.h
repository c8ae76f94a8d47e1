// Attention on raw pointers, see attention.h. A thread owns some rows of one key-value head and a range of its keys,
// which it goes through in blocks: scores of all rows against the block, softmax weights, weighted sum of the values.
// The score matrix never exists beyond a block. Keys that no row sees are skipped.
// Memory traffic: each key and value is read once a task, and written once where present wants it.

#include "attention/tiles.h"
//
#include "rotary_embedding/rotary_embedding_kernel.h"
//
#include "attention/softmax.h"
//
#include "attention/work.h"
//
#include "attention/few_rows.h"
//
#include "attention/many_rows.h"

// The part of the task's keys that is in `keys` and `values`, whose first row is key `begin`.
template <class Method, typename T>
void attend_segment(const Work<T>& work, Method& method, const attention::Rows<const T>& keys,
                    const attention::Rows<const T>& values, int64_t begin, int64_t end, bool copies_keys,
                    bool copies_values) {
  const attention::Task& task = work.task;
  const int64_t first = std::max(begin, task.key_begin), last = std::min(end, task.key_end);
  for (int64_t j = first; j < last; j += attention::kBlock) {
    const int64_t count = std::min(attention::kBlock, last - j);
    const T* key = keys.at(task.batch, task.head, j - begin);
    const T* value = values.at(task.batch, task.head, j - begin);
    if (copies_keys) work.copy(work.problem.key, key, keys.row, j, count);
    if (copies_values) work.copy(work.problem.value, value, values.row, j, count);
    if (work.rows > 0 && work.memory.first[0] < j + count && j < work.memory.last[work.rows - 1])
      method.block(key, keys.row, value, values.row, j, count);
  }
}

template <class Method, typename T>
void attend_with(const Work<T>& work) {
  Method method(work);
  if (work.rows > 0) {
    work.prepare();
    method.load_queries();
  }
  const auto &key = work.problem.key, &value = work.problem.value;
  const int64_t past = work.problem.past;
  const bool copies = work.task.copies;
  attend_segment(work, method, key.past, value.past, 0, past, copies && key.moves(), copies && value.moves());
  attend_segment(work, method, key.fresh, value.fresh, past, work.problem.keys(), copies && key.present.data,
                 copies && value.present.data);
  if (work.task.streams) stream_fence();
  if (work.task.partial) {
    work.store_partial();
  } else {
    work.store_output();
  }
}

template <typename T>
void attend(const attention::Problem<T>& problem, const attention::Task& task, const attention::Memory& memory) {
  const Work<T> work{problem, task, memory, task.rows()};
  if (work.rows < kManyRows) {
    attend_with<FewRows<T>>(work);
  } else {
    attend_with<ManyRows<T>>(work);
  }
}

// Merges the `parts` partial results for the rows of `task`, which lie one after the other, into y.
template <typename T>
void combine(const attention::Problem<T>& problem, const attention::Task& task, int64_t parts, float* partials,
             const attention::Memory& memory) {
  const Work<T> work{problem, task, memory, task.rows()};
  const int64_t dims = memory.value_dims, stride = attention::Partial::floats(work.rows, dims);
  for (int64_t r = 0; r < work.rows; ++r) {
    float maximum = -kInfinity, total = 0.0f;
    for (int64_t i = 0; i < parts; ++i)
      maximum = std::max(maximum, attention::Partial(partials + i * stride, work.rows, dims).maximum[r]);
    std::fill_n(memory.out, dims, 0.0f);
    for (int64_t i = 0; i < parts; ++i) {
      const attention::Partial part(partials + i * stride, work.rows, dims);
      if (part.sum[r] == 0) continue;
      const Vec weight = exp_negative(splat(part.maximum[r] - maximum));
      total += largest(weight) * part.sum[r];
      for (int64_t d = 0; d < dims; d += kLanes)
        store(memory.out + d, fma(weight, load(part.out + r * dims + d), load(memory.out + d)));
    }
    work.store_row(r, memory.out, total);
  }
}
