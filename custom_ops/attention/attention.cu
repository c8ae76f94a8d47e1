#include <utility>

#include "attention/any_rows.cuh"
#include "attention/attention.h"
#include "attention/eight_rows.h"
#include "attention/few_rows.cuh"
#include "attention/hopper_rows.h"
#include "attention/many_rows.cuh"
#include "attention/node.h"
#include "attention/parts.cuh"
#include "rotary_embedding/rotary_embedding_kernel.cuh"

namespace onnxfuse {
namespace {

using attention::Cache;
using attention::Problem;
using attention::cuda::Arguments;
using cuda::blocks;
using cuda::divide_up;
using cuda::is_aligned;

// Rows of a key-value head up to which reading the cache is what takes the time.
constexpr int64_t kFewRows = 16;
constexpr int64_t kKeysOfPart = 64;  // at least, for a part to be worth its share of the adding up
constexpr int64_t kBlocksOfMultiprocessor = 4;

template <typename T>
class Attention : public AttentionNode<T> {
 public:
  explicit Attention(const NodeInfo& node) : AttentionNode<T>(node), memory_(node) {}

  void compute(const Context& context) const {
    Arguments<T> a{};
    Problem<T>& p = a.problem;
    p = this->problem_of(context);
    const int64_t buffer = this->set_past(context, &p);
    const AnyTensor mask = this->mask_of(context, p.batch);
    if (mask.present) a.mask = {mask.data, bytes_of(mask.dtype), mask.shape[1]};
    const AnyTensor bias = context.input(attention::kBias);
    if (this->shared_) {
      // How many keys there are is in the mask, on the device: the kernels look there, and check the bias.
      a.room = buffer;
      a.bias_keys = bias.present && bias.shape.rank() > 0 ? bias.shape[-1] : 0;
      this->set_bias(context, a.bias_keys, &p);
    } else {
      p.past = buffer;
      this->check_mask_length(mask, p);
      this->set_bias(context, p.keys(), &p);
    }
    this->set_y(context, &p);
    const int64_t present = this->shared_ ? buffer : p.keys();
    this->set_present(context, attention::kPresentKey, present, p, &p.key);
    this->set_present(context, attention::kPresentValue, present, p, &p.value);
    if (p.batch == 0) return;

    constexpr int64_t kMost = 0x7fffffff;
    require(p.rows() < kMost && present < kMost && p.fresh + buffer < kMost && p.heads * p.key.size < kMost &&
                p.heads * p.value.size < kMost && a.mask.length * p.batch < kMost,
            "the tensors are larger than the CUDA kernel can count");

    const cuda::Stream stream(context);
    const auto rotation = this->rotation_of(context);
    const bool rotates_first = rotation && !set_rotary(*rotation, &a);
    const cuda::DeviceScratch rotated(context, memory_, rotates_first ? rotated_bytes(*rotation) : 0);
    if (rotates_first) rotate(stream, *rotation, rotated.template at<T>(0), &p);
    const bool attends = p.queries > 0 && p.value.size > 0;
    const bool needs_length = this->shared_ && !(attends && finds_length(a));
    const cuda::DeviceScratch past(context, memory_, needs_length ? sizeof(int) : 0);
    if (this->shared_) {
      fill(stream, buffer, p, &p.key);
      fill(stream, buffer, p, &p.value);
    } else {
      a.moves_key = p.key.moves();
      a.moves_value = p.value.moves();
    }
    if (needs_length) {
      a.past = past.at<int>(0);
      const bool has_clusters = cuda::can_start_early();
      const unsigned size = has_clusters ? cuda::kMostClusterBlocks : 1;
      stream.launch_clusters("Attention's length", has_clusters, attention::cuda::attention_cuda_past<T>, size, size,
                             attention::cuda::kPastThreads, 0, a, past.at<int>(0));
    }
    a.copies = attends && writes_present(p);
    if (!a.copies) copy(stream, a);
    if (attends) attend(context, stream, &a);
  }

 private:
  using Rotation = typename AttentionNode<T>::Rotation;

  // Lets the kernel for few rows rotate, if it can and will run.
  static bool set_rotary(const Rotation& rotation, Arguments<T>* a) {
    const RotaryLayout& layout = rotation.q;
    const int64_t unit = cuda::kLanes<T> * (layout.interleaved ? 1 : 2);  // pairs keep to vectors
    const bool fits = has_few_rows(a->problem) && a->problem.fresh <= kFewRows && layout.rotary_dim % unit == 0 &&
                      is_aligned(rotation.cos.data) && is_aligned(rotation.sin.data);
    if (!fits) return false;
    a->rotary = {rotation.cos.data,
                 rotation.sin.data,
                 rotation.cos.dtype == DType::kFloat32,
                 layout.interleaved,
                 static_cast<int>(layout.rotary_dim),
                 static_cast<int>(layout.table_width),
                 layout.table_batch_step};
    return true;
  }

  static int64_t aligned_bytes(int64_t count) { return divide_up(count * static_cast<int64_t>(sizeof(T)), 16) * 16; }
  static int64_t rotated_bytes(const Rotation& rotation) {
    return aligned_bytes(rotation.q_count) + aligned_bytes(rotation.k_count);
  }

  // Has q and the new k rotated in `memory`.
  static void rotate(const cuda::Stream& stream, const Rotation& rotation, T* memory, Problem<T>* p) {
    const auto rotated = [](const RotaryLayout& layout, int64_t count, attention::Rows<const T>* rows, T* to) {
      const int64_t groups = count == 0 ? 0 : count / (layout.group_size * layout.head_size);
      return cuda::Rotated<T>{std::exchange(rows->data, to), to, layout, groups};
    };
    T* const keys = memory + aligned_bytes(rotation.q_count) / static_cast<int64_t>(sizeof(T));
    const cuda::Rotated<T> q = rotated(rotation.q, rotation.q_count, &p->q, memory),
                           k = rotated(rotation.k, rotation.k_count, &p->key.fresh, keys);
    const void *const cos = rotation.cos.data, *const sin = rotation.sin.data;
    if (rotation.cos.dtype == kDTypeOf<T>) {
      cuda::rotary_embedding(stream, static_cast<const T*>(cos), static_cast<const T*>(sin), q, k);
    } else {
      cuda::rotary_embedding(stream, static_cast<const float*>(cos), static_cast<const float*>(sin), q, k);
    }
  }

  // Whether reading the cache is what takes the time, and the kernel for that can do it.
  static bool has_few_rows(const Problem<T>& p) { return has_vectors(p) && p.rows() <= kFewRows; }

  // Whether the kernel looks into the mask of a shared cache by itself, as each of its clusters or blocks then does.
  static bool finds_length(const Arguments<T>& a) {
    constexpr int64_t kMost = 8 << 10;
    return sizeof(T) == 2 && writes_present(a.problem) && a.problem.batch * a.mask.length <= kMost;
  }

  static int bytes_of(DType dtype) { return dtype == DType::kInt64 ? 8 : dtype == DType::kInt32 ? 4 : 1; }

  // If the caller did not bind one memory to past and present, brings over the whole buffer, to go on as if he had.
  static void fill(const cuda::Stream& stream, int64_t buffer, const Problem<T>& p, Cache<T>* cache) {
    const int64_t count = p.batch * p.kv_heads * buffer * cache->size;
    if (!cache->moves() || count == 0) return;
    stream.copy(cache->present.data, cache->past.data, static_cast<size_t>(count) * sizeof(T));
    cache->past.data = cache->present.data;
  }

  // Writes present.
  static void copy(const cuda::Stream& stream, const Arguments<T>& a) {
    const Problem<T>& p = a.problem;
    if (p.key.present.data == nullptr && p.value.present.data == nullptr) return;
    const int64_t rows = a.moves_key || a.moves_value ? p.keys() : p.fresh;
    const bool vectors = has_vectors(p.key) && has_vectors(p.value);
    const int64_t units = rows * std::max(p.key.size, p.value.size) / (vectors ? cuda::kLanes<T> : 1);
    const dim3 grid(blocks(divide_up(units, attention::cuda::kCopyThreads)), plane(p.batch * p.kv_heads), 2);
    const auto kernel =
        vectors ? attention::cuda::attention_cuda_copy<T, uint4> : attention::cuda::attention_cuda_copy<T, T>;
    stream.launch("Attention's cache", kernel, grid, attention::cuda::kCopyThreads, 0, a);
  }

  // A size of the second or third dimension of a grid.
  static unsigned plane(int64_t size) {
    require(size <= 0xffff, "batch times kv_num_heads is ", size, ", expected at most 65535 on CUDA");
    return static_cast<unsigned>(size);
  }

  // Whether rows can be moved in vectors of 16 bytes.
  static bool has_vectors(const Cache<T>& cache) {
    return cache.size % cuda::kLanes<T> == 0 && is_aligned(cache.past.data) && is_aligned(cache.fresh.data) &&
           is_aligned(cache.present.data);
  }

  // Whether they are besides no longer than a warp's vectors.
  static bool has_vectors(const Problem<T>& p, int64_t most = cuda::kWarp * cuda::kLanes<T>) {
    return has_vectors(p.key) && has_vectors(p.value) && p.key.size <= most && p.value.size <= most &&
           is_aligned(p.q.data) && is_aligned(p.y.data);
  }

  // Whether many rows go to the kernel for compute capability 9.0.
  static bool is_for_hopper(const Problem<T>& p) { return sizeof(T) == 2 && has_vectors(p) && cuda::has_hopper(); }

  // Whether the kernel that reads the cache writes present, too.
  static bool writes_present(const Problem<T>& p) { return has_few_rows(p) || (is_for_hopper(p) && p.window <= 0); }

  void attend(const Context& context, const cuda::Stream& stream, Arguments<T>* a) const {
    namespace kernels = attention::cuda;
    const Problem<T>& p = a->problem;
    if constexpr (sizeof(T) == 2) {
      if (has_few_rows(p)) {
        plane(p.batch);
        plane(p.kv_heads);
        a->parts.count = 1;
        if (cuda::can_start_early()) return kernels::attend_eight_rows(stream, *a);
        return attend_in_parts(context, stream, a, kernels::kEightRows,
                               [&](dim3) { kernels::attend_eight_rows(stream, *a); });
      }
    } else if (has_few_rows(p)) {
      const int lanes = kernels::few_rows_lanes<T>(std::max(p.key.size, p.value.size));
      const auto launch = [&](auto kernel, int64_t rows_of_block, int64_t bytes) {
        attend_in_parts(context, stream, a, rows_of_block, [&](dim3 grid) {
          stream.launch_early("Attention", kernel, grid, kernels::kFewThreads, static_cast<size_t>(bytes), *a, lanes);
        });
      };
      if (p.rows() == 1) {
        launch(kernels::attention_cuda_few_rows<T, 1>, 1, kernels::few_rows_bytes<T, 1>(lanes));
      } else if (p.rows() <= 4) {
        launch(kernels::attention_cuda_few_rows<T, 4>, 4, kernels::few_rows_bytes<T, 4>(lanes));
      } else {
        launch(kernels::attention_cuda_few_rows<T, 8>, 8, kernels::few_rows_bytes<T, 8>(lanes));
      }
      return;
    }
    if constexpr (sizeof(T) == 2) {
      if (is_for_hopper(p)) return kernels::attend_on_hopper(stream, *a);
    }
    if (has_vectors(p, kernels::kManyFeatures) && !wants_parts(*a)) return attend_with_tensor_cores(stream, *a);
    const auto kernel = kernels::attention_cuda_any_rows<T>;
    const int64_t bytes = kernels::any_rows_bytes(p.key.size, p.value.size);
    const int most = cuda::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    require(bytes <= most, "keys of ", p.key.size, " and values of ", p.value.size, " features take ", bytes,
            " bytes of shared memory, expected at most the ", most, " of this device");
    attend_in_parts(context, stream, a, kernels::kAnyRows, [&](dim3 grid) {
      stream.launch("Attention", kernel, grid, kernels::kAnyThreads, static_cast<size_t>(bytes), *a);
    });
  }

  // Whether rows of float32 are too few to keep the device busy, unless the keys are cut into parts.
  static bool wants_parts(const Arguments<T>& a) {
    constexpr int64_t kRowsOfDevice = 2048, kManyKeys = 512;
    const Problem<T>& p = a.problem;
    const bool few_of_all = p.batch * p.queries * p.heads < kRowsOfDevice && keys_at_most(a) >= kManyKeys;
    return sizeof(T) == sizeof(float) && (p.rows() <= kFewRows || few_of_all);
  }

  static int64_t keys_at_most(const Arguments<T>& a) {
    return a.room > 0 ? std::min(a.room, a.mask.length) : a.problem.keys();
  }

  static void attend_with_tensor_cores(const cuda::Stream& stream, const Arguments<T>& a) {
    if constexpr (sizeof(T) == sizeof(float)) {
      if (!stream.allows_tf32()) return attend_with_tensor_cores<true>(stream, a);
    }
    attend_with_tensor_cores<false>(stream, a);
  }

  template <bool kSplit>
  static void attend_with_tensor_cores(const cuda::Stream& stream, const Arguments<T>& a) {
    namespace kernels = attention::cuda;
    const Problem<T>& p = a.problem;
    const int64_t size = std::max(p.key.size, p.value.size);
    kernels::for_head_size<64, 128, kernels::kManyFeatures>(size, [&](auto most) {
      constexpr int kSize = decltype(most)::value, kBytes = kSize * static_cast<int>(sizeof(T));
      const dim3 grid(blocks(divide_up(p.rows(), kernels::kManyRows<kBytes>)), plane(p.kv_heads), plane(p.batch));
      const auto kernel = kernels::has_plain_scores(p) ? kernels::attention_cuda_many_rows<T, kSize, true, kSplit>
                                                       : kernels::attention_cuda_many_rows<T, kSize, false, kSplit>;
      stream.launch("Attention", kernel, grid, kernels::kManyThreads<kBytes>, kernels::kManyMemory<kBytes>, a);
    });
  }

  // Cuts the keys into as many parts as keep the device busy, calls launch(grid), and adds up the parts.
  template <class Launch>
  void attend_in_parts(const Context& context, const cuda::Stream& stream, Arguments<T>* a, int64_t rows_of_block,
                       const Launch& launch) const {
    const Problem<T>& p = a->problem;
    const int64_t heads = p.batch * p.kv_heads, without_parts = heads * divide_up(p.rows(), rows_of_block);
    const int64_t wanted =
        kBlocksOfMultiprocessor * cuda::device_attribute(cudaDevAttrMultiProcessorCount) / without_parts;
    const int64_t count =
        std::max<int64_t>(1, std::min({wanted, keys_at_most(*a) / kKeysOfPart, int64_t{attention::cuda::kMostParts}}));
    a->parts = {static_cast<int>(count), nullptr, 2 + p.value.size};
    const int64_t floats = count > 1 ? heads * p.rows() * count * a->parts.floats : 0;
    const cuda::DeviceScratch scratch(context, memory_, floats * static_cast<int64_t>(sizeof(float)));
    a->parts.data = scratch.at<float>(0);
    launch(dim3(blocks(without_parts), static_cast<unsigned>(count)));
    if (count == 1) return;
    stream.launch_early("Attention's parts", attention::cuda::attention_cuda_combine<T>, blocks(heads * p.rows()),
                        attention::cuda::kCombineThreads, 0, *a);
  }

  cuda::DeviceMemory memory_;
};

const Register<Attention<float>, Attention<Half>, Attention<BFloat16>> registered("Attention", kCudaProvider);

}  // namespace
}  // namespace onnxfuse
