// What a node of Attention says, checked as far as shapes tell: common to the kernels of all devices.
#pragma once

#include <cmath>
#include <optional>

#include "attention/attention.h"
#include "common/registry.h"
#include "rotary_embedding/attributes.h"

namespace onnxfuse {

namespace attention {

enum Input { kQ, kK, kV, kPastKey, kPastValue, kMask, kBias, kCos, kSin };
enum Output { kY, kPresentKey, kPresentValue };

}  // namespace attention

template <typename T>
class AttentionNode {
 public:
  static constexpr Port kInputs[] = {required<T>("q"),        required<T>("k"),          required<T>("v"),
                                     optional<T>("past_key"), optional<T>("past_value"), optional_any("attention_mask"),
                                     optional_any("bias"),    optional_any("cos"),       optional_any("sin")};
  static constexpr Port kOutputs[] = {required<T>("y"), optional<T>("present_key"), optional<T>("present_value")};

  static void infer(const ShapeInference& shapes) {
    const auto q = shapes.input(attention::kQ), k = shapes.input(attention::kK), v = shapes.input(attention::kV);
    const int64_t heads = shapes.integer("num_heads", 0), kv_heads = shapes.integer("kv_num_heads", 0);
    if (!is_sequence(q) || !is_sequence(k) || !is_sequence(v) || heads <= 0 || kv_heads <= 0) return;
    const Dim unknown = Dim::unknown();
    const auto length = [](const TensorType& x) { return x.dims[x.dims.size() == 4 ? 2 : 1]; };
    const auto size = [&](const TensorType& x, int64_t heads) {
      const Dim& last = x.dims.back();
      return x.dims.size() == 4 ? last : last.known() ? Dim{last.size / heads, ""} : unknown;
    };
    const Dim batch = q->dims.front(), value_size = size(*v, kv_heads);
    if (q->dims.size() == 4) {
      shapes.output(attention::kY, q->dtype, {batch, Dim{heads, ""}, length(*q), value_size});
    } else {
      const Dim features = value_size.known() ? Dim{heads * value_size.size, ""} : unknown;
      shapes.output(attention::kY, q->dtype, {batch, length(*q), features});
    }
    const bool rows_first = shapes.integer("past_rows", 0) != 0;
    const Dim keys = key_count(shapes, length(*k), rows_first ? 1 : 2), kept_heads{kv_heads, ""};
    const Dim second = rows_first ? keys : kept_heads, third = rows_first ? kept_heads : keys;
    shapes.output(attention::kPresentKey, q->dtype, {batch, second, third, size(*k, kv_heads)});
    shapes.output(attention::kPresentValue, q->dtype, {batch, second, third, value_size});
  }

  explicit AttentionNode(const NodeInfo& node)
      : heads_(node.integer("num_heads")),
        kv_heads_(node.integer("kv_num_heads")),
        scale_(node.real("scale", 0.0f)),
        softcap_(node.real("softcap", 0.0f)),
        causal_(node.integer("causal", 0) != 0),
        window_(node.integer("window", 0)),
        shared_(node.integer("shared_cache", 0) != 0),
        rows_first_(node.integer("past_rows", 0) != 0),
        rotary_(node) {
    require(heads_ > 0 && kv_heads_ > 0 && heads_ % kv_heads_ == 0, "num_heads is ", heads_, " and kv_num_heads is ",
            kv_heads_, ", expected a positive multiple of a positive number");
    require(!shared_ || !rows_first_, "shared_cache and past_rows are both set, expected one of them: the rows of a ",
            "shared cache are [B, K, M, D]");
  }

 protected:
  // All but the past, which keys are visible, the bias and the outputs.
  attention::Problem<T> problem_of(const Context& context) const {
    const Sequence<const T> q(context, attention::kQ, heads_), k(context, attention::kK, kv_heads_),
        v(context, attention::kV, kv_heads_);
    require(k.batch == q.batch && k.size == q.size, "k does not have the batch ", q.batch, " and head size ", q.size,
            " of q");
    require(v.batch == k.batch && v.length == k.length, "v does not have the batch ", k.batch, " and length ", k.length,
            " of k");

    attention::Problem<T> problem{};
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
    return problem;
  }

  // How q and k are rotated; nothing unless cos and sin are given.
  struct Rotation {
    AnyTensor cos, sin;
    RotaryLayout q, k;
    int64_t q_count, k_count;  // elements
  };

  std::optional<Rotation> rotation_of(const Context& context) const {
    const AnyTensor cos = context.input(attention::kCos), sin = context.input(attention::kSin);
    require(cos.present == sin.present, "cos and sin must both be given, or neither");
    if (!cos.present) return std::nullopt;
    require(cos.dtype == kDTypeOf<T> || cos.dtype == DType::kFloat32, "cos is ", dtype_name(cos.dtype), ", expected ",
            dtype_name(kDTypeOf<T>), " or float32");
    require(sin.dtype == cos.dtype, "sin is ", dtype_name(sin.dtype), ", expected the dtype of cos, ",
            dtype_name(cos.dtype));
    const Shape q = context.input(attention::kQ).shape, k = context.input(attention::kK).shape;
    return Rotation{cos,
                    sin,
                    rotary_.layout_of(q, cos.shape, sin.shape, "q", "num_heads", heads_),
                    rotary_.layout_of(k, cos.shape, sin.shape, "k", "kv_num_heads", kv_heads_),
                    q.count(),
                    k.count()};
  }

  // Returns the rows of the past, or of the shared buffer.
  int64_t set_past(const Context& context, attention::Problem<T>* problem) const {
    const auto key = context.input<T>(attention::kPastKey), value = context.input<T>(attention::kPastValue);
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

  AnyTensor mask_of(const Context& context, int64_t batch) const {
    const AnyTensor mask = context.input(attention::kMask);
    require(mask.present || !shared_, "shared_cache needs attention_mask, which tells the lengths");
    if (!mask.present) return mask;
    require(mask.shape.rank() == 2 && mask.shape[0] == batch, "attention_mask is ", mask.shape, ", expected [", batch,
            ", L]");
    const bool fits = mask.dtype == DType::kInt64 || mask.dtype == DType::kInt32 || mask.dtype == DType::kBool;
    require(fits, "attention_mask is ", dtype_name(mask.dtype), ", expected int64, int32 or bool");
    return mask;
  }

  // Without a shared cache, the mask has a column for every key.
  static void check_mask_length(const AnyTensor& mask, const attention::Problem<T>& problem) {
    require(!mask.present || mask.shape[1] == problem.keys(), "attention_mask is ", mask.shape, ", expected [",
            problem.batch, ", ", problem.keys(), "]: ", problem.past, " past keys and ", problem.fresh, " new ones");
  }

  // `keys` is the length that the last dimension of the bias has to have.
  void set_bias(const Context& context, int64_t keys, attention::Problem<T>* problem) const {
    const AnyTensor bias = context.input(attention::kBias);
    if (!bias.present) return;
    const Shape full{problem->batch, heads_, problem->queries, keys};
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

  // Allocates y.
  void set_y(const Context& context, attention::Problem<T>* problem) const {
    const int64_t batch = problem->batch, queries = problem->queries, size = problem->value.size;
    const bool flat = context.input(attention::kQ).shape.rank() == 3;
    const Shape shape = flat ? Shape{batch, queries, heads_ * size} : Shape{batch, heads_, queries, size};
    problem->y = rows_of(context.output<T>(attention::kY, shape).data, shape, heads_);
  }

  // Allocates present_key or present_value with `length` rows.
  void set_present(const Context& context, attention::Output index, int64_t length,
                   const attention::Problem<T>& problem, attention::Cache<T>* cache) const {
    const Shape shape = cache_shape(problem.batch, length, cache->size);
    const auto present = context.output<T>(index, shape);
    if (!present.present) return;
    cache->present = cache_rows(present.data, shape);
  }

  int64_t heads_, kv_heads_;
  float scale_, softcap_;
  bool causal_;
  int64_t window_;
  bool shared_, rows_first_;
  RotaryAttributes rotary_;

 private:
  static bool is_sequence(const std::optional<TensorType>& x) {
    return x && (x->dims.size() == 3 || x->dims.size() == 4);
  }

  // The dimension of present where past has its rows.
  static Dim key_count(const ShapeInference& shapes, const Dim& fresh, int axis) {
    if (!shapes.has_input(attention::kPastKey)) return fresh;
    const auto past = shapes.input(attention::kPastKey), mask = shapes.input(attention::kMask);
    if (past && past->dims.size() == 4) {
      const Dim& rows = past->dims[axis];
      if (shapes.integer("shared_cache", 0) != 0) return rows;
      if (rows.known() && fresh.known()) return Dim{rows.size + fresh.size, ""};
    }
    return mask && shapes.integer("shared_cache", 0) == 0 ? mask->dims.back() : Dim::unknown();
  }

  // Strides of [B, S, heads * size] or [B, heads, S, size].
  template <typename U>
  static attention::Rows<U> rows_of(U* data, const Shape& shape, int64_t heads) {
    if (shape.rank() == 3) return {data, shape[1] * shape[2], shape[2] / heads, shape[2]};
    return {data, shape.count(1, 4), shape.count(2, 4), shape[3]};
  }

  // Dimensions of past and present.
  Shape cache_shape(int64_t batch, int64_t length, int64_t size) const {
    return rows_first_ ? Shape{batch, length, kv_heads_, size} : Shape{batch, kv_heads_, length, size};
  }

  template <typename U>
  attention::Rows<U> cache_rows(U* data, const Shape& shape) const {
    if (!rows_first_) return rows_of(data, shape, kv_heads_);
    return rows_of(data, Shape{shape[0], shape[1], shape.count(2, 4)}, kv_heads_);
  }

  // q, k or v.
  template <typename U>
  struct Sequence {
    int64_t rank, batch, length, size;
    attention::Rows<U> rows;

    Sequence(const Context& context, attention::Input index, int64_t heads) {
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
};

}  // namespace onnxfuse
