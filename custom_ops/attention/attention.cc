#include "attention/attention.h"

#include <atomic>
#include <cmath>
#include <thread>
#include <vector>

#include "attention/plan.h"
#include "common/op.h"

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

enum Input { kQ, kK, kV, kPastKey, kPastValue, kMask, kBias };
enum Output { kY, kPresentKey, kPresentValue };

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
class Attention {
 public:
  static constexpr Port kInputs[] = {required<T>("q"),        required<T>("k"),          required<T>("v"),
                                     optional<T>("past_key"), optional<T>("past_value"), optional_any("attention_mask"),
                                     optional_any("bias")};
  static constexpr Port kOutputs[] = {required<T>("y"), optional<T>("present_key"), optional<T>("present_value")};

  static void infer(const ShapeInference& shapes) {
    const auto q = shapes.input(kQ), k = shapes.input(kK), v = shapes.input(kV);
    const int64_t heads = shapes.integer("num_heads", 0), kv_heads = shapes.integer("kv_num_heads", 0);
    if (!q || !k || !v || heads <= 0 || kv_heads <= 0) return;
    const Dim unknown = Dim::unknown();
    const auto length = [](const TensorType& x) { return x.dims[x.dims.size() == 4 ? 2 : 1]; };
    const auto size = [&](const TensorType& x, int64_t heads) {
      const Dim& last = x.dims.back();
      return x.dims.size() == 4 ? last : last.known() ? Dim{last.size / heads, ""} : unknown;
    };
    const Dim batch = q->dims.front(), value_size = size(*v, kv_heads);
    if (q->dims.size() == 4) {
      shapes.output(kY, q->dtype, {batch, Dim{heads, ""}, length(*q), value_size});
    } else {
      const Dim features = value_size.known() ? Dim{heads * value_size.size, ""} : unknown;
      shapes.output(kY, q->dtype, {batch, length(*q), features});
    }
    const bool rows_first = shapes.integer("past_rows", 0) != 0;
    const Dim keys = key_count(shapes, length(*k), rows_first ? 1 : 2), kept_heads{kv_heads, ""};
    const Dim second = rows_first ? keys : kept_heads, third = rows_first ? kept_heads : keys;
    shapes.output(kPresentKey, q->dtype, {batch, second, third, size(*k, kv_heads)});
    shapes.output(kPresentValue, q->dtype, {batch, second, third, value_size});
  }

  explicit Attention(const NodeInfo& node)
      : heads_(node.integer("num_heads")),
        kv_heads_(node.integer("kv_num_heads")),
        scale_(node.real("scale", 0.0f)),
        softcap_(node.real("softcap", 0.0f)),
        causal_(node.integer("causal", 0) != 0),
        window_(node.integer("window", 0)),
        shared_(node.integer("shared_cache", 0) != 0),
        rows_first_(node.integer("past_rows", 0) != 0) {
    require(heads_ > 0 && kv_heads_ > 0 && heads_ % kv_heads_ == 0, "num_heads is ", heads_, " and kv_num_heads is ",
            kv_heads_, ", expected a positive multiple of a positive number");
    require(!shared_ || !rows_first_, "shared_cache and past_rows are both set, expected one of them: the rows of a ",
            "shared cache are [B, K, M, D]");
  }

  void compute(const Context& context) const {
    const Sequence<const T> q(context, kQ, heads_), k(context, kK, kv_heads_), v(context, kV, kv_heads_);
    require(k.batch == q.batch && k.size == q.size, "k does not have the batch ", q.batch, " and head size ", q.size,
            " of q");
    require(v.batch == k.batch && v.length == k.length, "v does not have the batch ", k.batch, " and length ", k.length,
            " of k");

    Problem<T> problem{};
    problem.batch = q.batch;
    problem.queries = q.length;
    problem.heads = heads_;
    problem.kv_heads = kv_heads_;
    problem.fresh = k.length;
    problem.scale = scale_ != 0 ? scale_ : 1.0f / std::sqrt(static_cast<float>(q.size));
    problem.softcap = softcap_;
    problem.causal = causal_;
    problem.window = window_;
    problem.q = q.rows;
    problem.key = {q.size, {}, k.rows, {}};
    problem.value = {v.size, {}, v.rows, {}};
    const int64_t buffer = set_past(context, &problem);
    const Padding padding = set_lengths(context, buffer, &problem);
    problem.visible = padding.visible.data();
    set_bias(context, &problem);

    const Shape y_shape =
        q.rank == 3 ? Shape{q.batch, q.length, heads_ * v.size} : Shape{q.batch, heads_, q.length, v.size};
    problem.y = rows_of(context.output<T>(kY, y_shape).data, y_shape, heads_);
    const int64_t present = shared_ ? buffer : problem.keys();
    set_present(context, kPresentKey, present, problem, &problem.key);
    set_present(context, kPresentValue, present, problem, &problem.value);
    run(context, problem);
  }

 private:
  // The dimension of present where past has its rows.
  static Dim key_count(const ShapeInference& shapes, const Dim& fresh, int axis) {
    if (!shapes.has_input(kPastKey)) return fresh;
    const auto past = shapes.input(kPastKey), mask = shapes.input(kMask);
    if (past && past->dims.size() == 4) {
      const Dim& rows = past->dims[axis];
      if (shapes.integer("shared_cache", 0) != 0) return rows;
      if (rows.known() && fresh.known()) return Dim{rows.size + fresh.size, ""};
    }
    return mask && shapes.integer("shared_cache", 0) == 0 ? mask->dims.back() : Dim::unknown();
  }

  // Strides of [B, S, heads * size] or [B, heads, S, size].
  template <typename U>
  static Rows<U> rows_of(U* data, const Shape& shape, int64_t heads) {
    if (shape.rank() == 3) return {data, shape[1] * shape[2], shape[2] / heads, shape[2]};
    return {data, shape.count(1, 4), shape.count(2, 4), shape[3]};
  }

  // Dimensions of past and present.
  Shape cache_shape(int64_t batch, int64_t length, int64_t size) const {
    return rows_first_ ? Shape{batch, length, kv_heads_, size} : Shape{batch, kv_heads_, length, size};
  }

  template <typename U>
  Rows<U> cache_rows(U* data, const Shape& shape) const {
    if (!rows_first_) return rows_of(data, shape, kv_heads_);
    return rows_of(data, Shape{shape[0], shape[1], shape.count(2, 4)}, kv_heads_);
  }

  // q, k or v.
  template <typename U>
  struct Sequence {
    int64_t rank, batch, length, size;
    Rows<U> rows;

    Sequence(const Context& context, Input index, int64_t heads) {
      const auto tensor = context.input<T>(index);
      const Shape& shape = tensor.shape;
      rank = shape.rank();
      const bool fits = rank == 3 ? shape[2] % heads == 0 : rank == 4 && shape[1] == heads;
      require(fits, kInputs[index].name, " is ", shape, ", expected [B, S, ", heads, " * size] or [B, ", heads,
              ", S, size]");
      batch = shape[0];
      length = rank == 3 ? shape[1] : shape[2];
      size = rank == 3 ? shape[2] / heads : shape[3];
      rows = rows_of(tensor.data, shape, heads);
    }
  };

  // Returns the rows of the past, or of the shared buffer.
  int64_t set_past(const Context& context, Problem<T>* problem) const {
    const auto key = context.input<T>(kPastKey), value = context.input<T>(kPastValue);
    require(key.present == value.present, "past_key and past_value must both be given, or neither");
    require(key.present || !shared_, "shared_cache needs past_key and past_value");
    if (!key.present) return 0;
    const int64_t length = key.shape.rank() == 4 ? key.shape[rows_first_ ? 1 : 2] : 0;
    const Shape key_shape = cache_shape(problem->batch, length, problem->key.size);
    const Shape value_shape = cache_shape(problem->batch, length, problem->value.size);
    require(key.shape == key_shape, "past_key is ", key.shape, ", expected [", problem->batch, ", ",
            rows_first_ ? "P, " : "", kv_heads_, rows_first_ ? "" : ", P", ", ", problem->key.size, "]");
    require(value.shape == value_shape, "past_value is ", value.shape, ", expected ", value_shape);
    problem->key.past = cache_rows(key.data, key_shape);
    problem->value.past = cache_rows(value.data, value_shape);
    return length;
  }

  // The number of past keys, and which keys are visible.
  Padding set_lengths(const Context& context, int64_t buffer, Problem<T>* problem) const {
    const AnyTensor mask = context.input(kMask);
    const int64_t batch = problem->batch, fresh = problem->fresh;
    require(mask.present || !shared_, "shared_cache needs attention_mask, which tells the lengths");
    Padding padding;
    if (mask.present) {
      require(mask.shape.rank() == 2 && mask.shape[0] == batch, "attention_mask is ", mask.shape, ", expected [", batch,
              ", L]");
      padding = read_padding(mask);
    }
    if (shared_) {
      const int64_t keys = batch == 0 ? fresh : padding.end();
      require(fresh <= keys && keys <= buffer, "attention_mask shows keys up to ", keys, ", expected at least the ",
              fresh, " new ones and at most the ", buffer, " of the buffer");
      problem->past = keys - fresh;
      return padding;
    }
    problem->past = buffer;
    if (mask.present) {
      require(mask.shape[1] == problem->keys(), "attention_mask is ", mask.shape, ", expected [", batch, ", ",
              problem->keys(), "]: ", buffer, " past keys and ", fresh, " new ones");
    } else {
      padding.visible.assign(batch, {0, problem->keys(), nullptr});
    }
    return padding;
  }

  void set_bias(const Context& context, Problem<T>* problem) const {
    const AnyTensor bias = context.input(kBias);
    if (!bias.present) return;
    const Shape full{problem->batch, heads_, problem->queries, problem->keys()};
    const Shape shape = bias.shape.rank() == 3 ? Shape{bias.shape[0], 1, bias.shape[1], bias.shape[2]} : bias.shape;
    bool fits = shape.rank() == 4 && shape[3] == full[3];
    for (int i = 0; i < 3 && fits; ++i) fits = shape[i] == full[i] || shape[i] == 1;
    require(fits, "bias is ", bias.shape, ", expected ", full,
            " or 1 in place of any of the first three dimensions, or that without heads");
    if (bias.dtype == DType::kFloat32) {
      problem->bias.single = bias.as<float>().data;
    } else {
      problem->bias.narrow = bias.as<T>().data;
    }
    const auto stride = [&](int i) { return shape[i] == 1 ? 0 : shape.count(i + 1, 4); };
    problem->bias.batch = stride(0);
    problem->bias.head = stride(1);
    problem->bias.row = stride(2);
  }

  void set_present(const Context& context, Output index, int64_t length, const Problem<T>& problem,
                   attention::Cache<T>* cache) const {
    const Shape shape = cache_shape(problem.batch, length, cache->size);
    const auto present = context.output<T>(index, shape);
    if (!present.present) return;
    cache->present = cache_rows(present.data, shape);
    if (shared_ && cache->moves()) {
      // The caller did not bind one memory to both: bring over the whole buffer, then go on as if he had.
      const T* from = cache->past.data;
      context.parallel_for(shape.count(), 0.1 * sizeof(T), [&](int64_t begin, int64_t end) {
        std::copy(from + begin, from + end, present.data + begin);
      });
      cache->past.data = present.data;
    }
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
      for (int64_t i; (i = next.fetch_add(1)) < plan.tasks();) {
        Task task = plan.task(i);
        task.copies = copies && plan.reads_once();
        task.streams = task.copies && streams(problem);
        const int64_t group = i / plan.parts();
        if (plan.parts() == 1) {
          attend(problem, task, own);
          continue;
        }
        task.partial = partials.data() + i * partial;
        attend(problem, task, own);
        // Whoever finishes the last part of a group merges them.
        if (finished[group].fetch_add(1) + 1 == plan.parts())
          combine(problem, task, plan.parts(), partials.data() + group * plan.parts() * partial, own);
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
    const int64_t blocks = attention::divide_up(problem.keys(), attention::kBlock), heads = problem.batch * kv_heads_;
    const double each = 0.2 * attention::kBlock * (problem.key.size + problem.value.size) * sizeof(T);
    context.parallel_for(heads * blocks, each, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        Task task{};  // without rows
        task.batch = i / blocks / kv_heads_;
        task.head = i / blocks % kv_heads_;
        task.key_begin = i % blocks * attention::kBlock;
        task.key_end = std::min(task.key_begin + attention::kBlock, problem.keys());
        task.copies = true;
        task.streams = streams(problem);
        attend(problem, task, Memory(nullptr, 0, problem.key.size, problem.value.size));
      }
    });
  }

  // A guess at the serial run time: two multiplications for each score and feature, or the memory traffic.
  static double nanoseconds(const Problem<T>& problem) {
    const double features = problem.key.size + problem.value.size, keys = problem.batch * problem.keys();
    return keys * features * (problem.queries * problem.heads * 0.03 + problem.kv_heads * 0.1 * sizeof(T));
  }

  int64_t heads_, kv_heads_;
  float scale_, softcap_;
  bool causal_;
  int64_t window_;
  bool shared_, rows_first_;
};

const Register<Attention<float>, Attention<Half>, Attention<BFloat16>> registered("Attention");

}  // namespace
}  // namespace onnxfuse
