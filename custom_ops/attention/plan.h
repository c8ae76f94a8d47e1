// How one call of Attention is cut into tasks.
#pragma once

#include <algorithm>

#include "attention/memory.h"

namespace onnxfuse::attention {

// Tasks are the product of batches, key-value heads, blocks of rows and parts of the keys. Keys are split where there
// would otherwise be too few tasks to share out evenly; the parts of the same rows have consecutive numbers.
class Plan {
 public:
  template <typename T>
  explicit Plan(const Problem<T>& problem)
      : heads_(problem.kv_heads), rows_(problem.rows()), keys_(problem.keys()), groups_(problem.batch * heads_) {
    row_blocks_ = std::max<int64_t>(divide_up(rows_, kMostRows), 1);
    rows_per_task_ = row_blocks_ == 1 ? rows_ : round_up(divide_up(rows_, row_blocks_), kPanel);
    groups_ *= row_blocks_;
    parts_ = groups_ == 0 ? 1 : std::clamp<int64_t>(kFewTasks / groups_, 1, std::max<int64_t>(keys_ / kLeastKeys, 1));
    keys_per_task_ = std::max<int64_t>(round_up(divide_up(keys_, parts_), kBlock), 1);
    parts_ = std::max<int64_t>(divide_up(keys_, keys_per_task_), 1);
  }

  int64_t groups() const { return groups_; }
  int64_t parts() const { return parts_; }
  int64_t tasks() const { return groups_ * parts_; }
  int64_t rows_per_task() const { return rows_per_task_; }
  // Whether each key belongs to one task only, which can then also copy it.
  bool reads_once() const { return row_blocks_ == 1; }

  Task task(int64_t index) const {
    const int64_t part = index % parts_, group = index / parts_;
    // Under a causal mask the last rows see the most keys: they come first, so that no long task is left for the end.
    const int64_t block = row_blocks_ - 1 - group % row_blocks_, head = group / row_blocks_;
    Task task{};
    task.batch = head / heads_;
    task.head = head % heads_;
    task.row_begin = std::min(block * rows_per_task_, rows_);
    task.row_end = std::min(task.row_begin + rows_per_task_, rows_);
    task.key_begin = std::min(part * keys_per_task_, keys_);
    task.key_end = std::min(task.key_begin + keys_per_task_, keys_);
    return task;
  }

 private:
  static constexpr int64_t kMostRows = 192;  // their queries and weighted sums stay in the second-level cache
  static constexpr int64_t kFewTasks = 16;
  static constexpr int64_t kLeastKeys = 256;  // for a part: merging the parts must cost next to nothing

  int64_t heads_, rows_, keys_, groups_;
  int64_t row_blocks_, rows_per_task_, parts_, keys_per_task_;
};

}  // namespace onnxfuse::attention
