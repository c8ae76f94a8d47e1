// Attention on raw pointers, see attention.h. A thread owns some rows of one key-value head and a range of its keys,
// which it goes through in blocks: scores of all rows against the block, softmax weights, weighted sum of the values.
// The score matrix never exists beyond a block. Keys that no row sees are skipped.
// Memory traffic: each key and value is read once a task, and written once where present wants it; of few rows, while
// the next ones are on their way.

#include "attention/tiles.h"
//
#include "rotary_embedding/rotary_embedding_kernel.h"
//
#include "attention/softmax.h"
//
#include "attention/ahead.h"
//
#include "attention/work.h"
//
#include "attention/few_rows.h"
//
#include "attention/many_rows.h"

// The part of the task's keys that are rows of the past, from key 0 on, or new ones, from key `begin` on.
template <class Method, typename T>
void attend_segment(const Work<T>& work, Method& method, bool past, int64_t begin, int64_t end) {
  const attention::Task& task = work.task;
  const auto side = [&](const attention::Cache<T>& cache, int64_t j) {
    const attention::Rows<const T>& rows = past ? cache.past : cache.fresh;
    const bool copies = task.copies && (past ? cache.moves() : cache.present.data != nullptr);
    return Side<T>{&cache, rows.at(task.batch, task.head, j - begin), rows.row, copies, {}};
  };
  const int64_t first = std::max(begin, task.key_begin), last = std::min(end, task.key_end);
  for (int64_t j = first; j < last; j += attention::kBlock) {
    Block<T> block{j, std::min(attention::kBlock, last - j), side(work.problem.key, j), side(work.problem.value, j)};
    if (past) work.look_ahead(&block);
    const bool seen = work.rows > 0 && work.memory.first[0] < j + block.count && j < work.memory.last[work.rows - 1];
    if (seen) {
      method.block(block);
    } else {
      work.copy(block);
    }
  }
}

template <class Method, typename T>
void attend_with(const Work<T>& work) {
  Method method(work);
  if (work.rows > 0) {
    work.prepare();
    method.load_queries();
  }
  attend_segment(work, method, true, 0, work.problem.past);
  attend_segment(work, method, false, work.problem.past, work.problem.keys());
  if (work.task.streams) stream_fence();
  if (work.task.partial) {
    work.store_partial();
  } else {
    work.store_output();
  }
}

// `following`: the task that the calling thread has next, or null.
template <typename T>
void attend(const attention::Problem<T>& problem, const attention::Task& task, const attention::Task* following,
            const attention::Memory& memory) {
  const Work<T> work{problem, task, following, memory, task.rows()};
  if (work.rows < kManyRows) {
    attend_with<FewRows<T>>(work);
  } else {
    attend_with<ManyRows<T>>(work);
  }
}

// Merges the `parts` partial results for the rows of `task`, which begin `stride` floats apart, into y.
template <typename T>
void combine(const attention::Problem<T>& problem, const attention::Task& task, int64_t parts, float* partials,
             int64_t stride, const attention::Memory& memory) {
  const Work<T> work{problem, task, nullptr, memory, task.rows()};
  const int64_t dims = memory.value_dims;
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
