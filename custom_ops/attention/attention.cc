#include "attention/attention.h"

#include <atomic>
#include <cmath>
#include <thread>
#include <vector>

#include "attention/node.h"
#include "attention/plan.h"
#include "common/op.h"
#include "common/prefetching.h"

#define ONNXFUSE_KERNELS "attention/attention_kernel.h"
#include "common/each_target.h"

namespace onnxfuse {
namespace {

using attention::Memory;
using attention::Partial;
using attention::Plan;
using attention::Problem;
using attention::Rows;
using attention::Task;
using attention::Visible;

// What the padding mask [B, length of a row] says: one Visible a batch, and the memory of their `hidden`.
struct Padding {
  std::vector<Visible> visible;
  std::vector<float> hidden;

  // One past the last key that any batch sees.
  int64_t end() const {
    int64_t end = 0;
    for (const Visible& v : visible) end = std::max(end, v.last);
    return end;
  }
};

template <typename U>
Padding read_padding(const U* mask, int64_t batch, int64_t length) {
  Padding padding;
  for (int64_t b = 0; b < batch; ++b, mask += length) {
    int64_t shown = 0, first = 0, last = length;
    for (int64_t j = 0; j < length; ++j) shown += mask[j] != 0;
    if (shown < length) {
      while (first < length && mask[first] == 0) ++first;
      while (last > 0 && mask[last - 1] == 0) --last;
      first = std::min(first, last);
    }
    padding.visible.push_back({first, last, nullptr});
    if (shown == last - first) continue;
    padding.hidden.resize(batch * length);
    for (int64_t j = 0; j < length; ++j) padding.hidden[b * length + j] = mask[j] != 0 ? 0.0f : -INFINITY;
    padding.visible.back().hidden = padding.hidden.data() + b * length;
  }
  return padding;
}

Padding read_padding(const AnyTensor& mask) {
  const int64_t batch = mask.shape[0], length = mask.shape[1];
  switch (mask.dtype) {
    case DType::kInt64:
      return read_padding(static_cast<const int64_t*>(mask.data), batch, length);
    case DType::kInt32:
      return read_padding(static_cast<const int32_t*>(mask.data), batch, length);
    case DType::kBool:
      return read_padding(static_cast<const uint8_t*>(mask.data), batch, length);
    default:
      fail("attention_mask is ", dtype_name(mask.dtype), ", expected int64, int32 or bool");
  }
}

template <typename T>
class Attention : public AttentionNode<T> {
 public:
  using AttentionNode<T>::AttentionNode;

  void compute(const Context& context) const {
    Problem<T> problem = this->problem_of(context);
    const auto rotation = this->rotation_of(context);
    const auto rotated = context.scratch<T>(rotation ? rotation->q_count + rotation->k_count : 0);
    if (rotation) rotate(context, *rotation, rotated.data(), &problem);
    const int64_t buffer = this->set_past(context, &problem);
    const Padding padding = set_lengths(context, buffer, &problem);
    problem.visible = padding.visible.data();
    this->set_bias(context, problem.keys(), &problem);
    this->set_y(context, &problem);
    const int64_t present = this->shared_ ? buffer : problem.keys();
    this->set_present(context, attention::kPresentKey, present, problem, &problem.key);
    this->set_present(context, attention::kPresentValue, present, problem, &problem.value);
    if (this->shared_) {
      fill(context, buffer, problem, &problem.key);
      fill(context, buffer, problem, &problem.value);
    }
    run(context, problem);
  }

 private:
  // Has q and the new k rotated in `memory`.
  void rotate(const Context& context, const typename AttentionNode<T>::Rotation& rotation, T* memory,
              Problem<T>* problem) const {
    const auto rotate_one = [&](const RotaryLayout& layout, int64_t count, Rows<const T>* rows, T* to) {
      const int64_t each = layout.group_size * layout.head_size;
      const auto kernel = ONNXFUSE_KERNEL(rotary_embedding_groups<T, T>);
      const auto kernel_of_floats = ONNXFUSE_KERNEL(rotary_embedding_groups<T, float>);
      const T* const from = rows->data;
      const void *const cos = rotation.cos.data, *const sin = rotation.sin.data;
      const bool same = rotation.cos.dtype == kDTypeOf<T>;
      context.parallel_for(
          each == 0 ? 0 : count / each, 0.2 * static_cast<double>(each), [&](int64_t begin, int64_t end) {
            if (same) {
              kernel(from, static_cast<const T*>(cos), static_cast<const T*>(sin), to, layout, begin, end);
            } else {
              kernel_of_floats(from, static_cast<const float*>(cos), static_cast<const float*>(sin), to, layout, begin,
                               end);
            }
          });
      rows->data = to;
    };
    rotate_one(rotation.q, rotation.q_count, &problem->q, memory);
    rotate_one(rotation.k, rotation.k_count, &problem->key.fresh, memory + rotation.q_count);
  }

  // The number of past keys, and which keys are visible.
  Padding set_lengths(const Context& context, int64_t buffer, Problem<T>* problem) const {
    const AnyTensor mask = this->mask_of(context, problem->batch);
    const int64_t batch = problem->batch, fresh = problem->fresh;
    problem->past = buffer;
    Padding padding;
    if (!mask.present) {
      padding.visible.assign(batch, {0, problem->keys(), nullptr});
      return padding;
    }
    padding = read_padding(mask);
    if (this->shared_) {
      const int64_t keys = batch == 0 ? fresh : padding.end();
      require(fresh <= keys && keys <= buffer, "attention_mask shows keys up to ", keys, ", expected at least the ",
              fresh, " new ones and at most the ", buffer, " of the buffer");
      problem->past = keys - fresh;
    } else {
      this->check_mask_length(mask, *problem);
    }
    return padding;
  }

  // If the caller did not bind one memory to past and present, brings over the whole buffer, to go on as if he had.
  void fill(const Context& context, int64_t buffer, const Problem<T>& problem, attention::Cache<T>* cache) const {
    if (!cache->moves()) return;
    const T* from = cache->past.data;
    T* to = cache->present.data;
    const int64_t count = problem.batch * problem.kv_heads * buffer * cache->size;
    context.parallel_for(count, 0.1 * sizeof(T),
                         [&](int64_t begin, int64_t end) { std::copy(from + begin, from + end, to + begin); });
    cache->past.data = to;
  }

  void run(const Context& context, const Problem<T>& problem) const {
    static const int64_t threads = std::max(1u, std::thread::hardware_concurrency());
    const auto attend = ONNXFUSE_KERNEL(attend<T>);
    const auto combine = ONNXFUSE_KERNEL(combine<T>);
    const Plan plan(problem);
    const bool copies = problem.key.present.data || problem.value.present.data;
    if (copies && !plan.reads_once()) copy_cache(context, problem);

    const int64_t workers = std::min(plan.tasks(), threads);
    const int64_t size = problem.key.size, value_size = problem.value.size;
    const int64_t bytes = Memory::bytes(plan.rows_per_task(), size, value_size);
    const auto memory = context.scratch<char>(workers * bytes);
    const int64_t partial = Partial::floats(plan.rows_per_task(), attention::round_up(value_size, attention::kWidest));
    const auto partials = context.scratch<float>(plan.parts() > 1 ? plan.tasks() * partial : 0);
    std::vector<std::atomic<int64_t>> finished(plan.parts() > 1 ? plan.groups() : 0);
    std::atomic<int64_t> next{0};
    context.parallel_for(workers, nanoseconds(problem) / workers, [&](int64_t worker, int64_t) {
      const Memory own(memory.data() + worker * bytes, plan.rows_per_task(), size, value_size);
      for (int64_t i = next.fetch_add(1), after; i < plan.tasks(); i = after) {
        after = next.fetch_add(1);
        const Task following = after < plan.tasks() ? plan.task(after) : Task{};
        Task task = plan.task(i);
        task.copies = copies && plan.reads_once();
        task.streams = task.copies && streams(problem);
        const int64_t group = i / plan.parts();
        if (plan.parts() == 1) {
          attend(problem, task, &following, own);
          continue;
        }
        task.partial = partials.data() + i * partial;
        attend(problem, task, &following, own);
        // Whoever finishes the last part of a group merges them.
        if (finished[group].fetch_add(1) + 1 == plan.parts())
          combine(problem, task, plan.parts(), partials.data() + group * plan.parts() * partial, partial, own);
      }
    });
  }

  // Whether present is so large that it would only push other things out of the caches before it is read again.
  static bool streams(const Problem<T>& problem) {
    constexpr int64_t kBytes = 1 << 20;
    const int64_t moved = problem.key.moves() || problem.value.moves() ? problem.keys() : problem.fresh;
    return problem.batch * problem.kv_heads * moved * (problem.key.size + problem.value.size) * sizeof(T) >= kBytes;
  }

  // Writes present when several tasks read the same keys.
  void copy_cache(const Context& context, const Problem<T>& problem) const {
    const auto attend = ONNXFUSE_KERNEL(attend<T>);
    const int64_t blocks = attention::divide_up(problem.keys(), attention::kBlock),
                  heads = problem.batch * problem.kv_heads;
    const double each = 0.2 * attention::kBlock * (problem.key.size + problem.value.size) * sizeof(T);
    context.parallel_for(heads * blocks, each, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        Task task{};  // without rows
        task.batch = i / blocks / problem.kv_heads;
        task.head = i / blocks % problem.kv_heads;
        task.key_begin = i % blocks * attention::kBlock;
        task.key_end = std::min(task.key_begin + attention::kBlock, problem.keys());
        task.copies = true;
        task.streams = streams(problem);
        attend(problem, task, nullptr, Memory(nullptr, 0, problem.key.size, problem.value.size));
      }
    });
  }

  // A guess at the serial run time: two multiplications for each score and feature, or the memory traffic.
  static double nanoseconds(const Problem<T>& problem) {
    const double features = problem.key.size + problem.value.size, keys = problem.batch * problem.keys();
    return keys * features * (problem.queries * problem.heads * 0.03 + problem.kv_heads * 0.1 * sizeof(T));
  }
};

const Register<Attention<float>, Attention<Half>, Attention<BFloat16>> registered("Attention");

}  // namespace
}  // namespace onnxfuse
