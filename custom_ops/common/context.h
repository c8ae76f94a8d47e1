// What an operator sees of the runtime: its attributes when it is created, its tensors and threads when it runs.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <optional>
#include <string>

#include "common/tensor.h"

namespace onnxfuse {

// The node an operator is created for.
class NodeInfo {
 public:
  explicit NodeInfo(const OrtKernelInfo* info) : info_(info) {}

  std::string name() const;

  // Attributes. Without a default the attribute is required; one of another type is an error in any case.
  float real(const char* name, std::optional<float> otherwise = std::nullopt) const;
  int64_t integer(const char* name, std::optional<int64_t> otherwise = std::nullopt) const;
  std::string text(const char* name, std::optional<std::string> otherwise = std::nullopt) const;

  // Whether an input is the same in every run.
  bool is_constant(size_t input) const;

  // The allocator of the device that the node runs on; the caller's to release.
  OrtAllocator* allocator() const;

 private:
  const OrtKernelInfo* info_;
};

// Memory for the duration of one run, from the runtime's arena; aligned to 64 bytes, not initialised.
template <typename T>
class Scratch;

// One run of an operator.
class Context {
 public:
  explicit Context(OrtKernelContext* context);
  Context(const Context&) = delete;
  ~Context();

  size_t input_count() const { return input_count_; }

  AnyTensor input(size_t index) const;
  template <typename T>
  Tensor<const T> input(size_t index) const {
    return input(index).as<T>();
  }

  // Allocates output `index`. An optional output that the node lacks is not allocated and not `present`.
  template <typename T>
  Tensor<T> output(size_t index, const Shape& shape) const {
    void* data = nullptr;
    const bool present = allocate_output(index, shape, &data);
    return {present, static_cast<T*>(data), shape};
  }

  template <typename T>
  Scratch<T> scratch(int64_t count) const {
    return Scratch<T>(*this, count);
  }

  // On CUDA: the stream to launch on, memory for what is launched there during this run, and whether the session has
  // the provider option use_tf32; see common/cuda.h.
  void* gpu_stream() const;
  void* gpu_scratch(const OrtMemoryInfo* device, size_t bytes) const;
  bool gpu_allows_tf32() const;

  // Calls body(begin, end) for disjoint ranges that cover [0, count), in parallel on the session's own threads where
  // the work, estimated as count * nanoseconds_each, is worth the hand-over. What a body throws is thrown on, once all
  // have returned.
  template <class Body>
  void parallel_for(int64_t count, double nanoseconds_each, const Body& body) const {
    const int64_t chunks = chunk_count(count, nanoseconds_each);
    if (chunks <= 1) {
      if (count > 0) body(int64_t{0}, count);
      return;
    }
    struct Job {
      const Body& body;
      int64_t count, chunks;
      std::atomic_flag failed = ATOMIC_FLAG_INIT;
      std::exception_ptr error = nullptr;  // the first one
    } job{body, count, chunks};
    const auto run_chunk = [](void* user, size_t index) {
      Job& job = *static_cast<Job*>(user);
      const int64_t i = static_cast<int64_t>(index);
      try {
        job.body(job.count * i / job.chunks, job.count * (i + 1) / job.chunks);
      } catch (...) {  // it must not reach the runtime's threads
        if (!job.failed.test_and_set()) job.error = std::current_exception();
      }
    };
    check(ort::api.KernelContext_ParallelFor(context_, run_chunk, static_cast<size_t>(chunks),
                                             static_cast<size_t>(chunks), &job));
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  template <typename T>
  friend class Scratch;

  static int64_t chunk_count(int64_t count, double nanoseconds_each);
  bool allocate_output(size_t index, const Shape& shape, void** data) const;
  void* allocate(size_t bytes) const;
  void release(void* memory) const;

  OrtKernelContext* context_;
  size_t input_count_ = 0, output_count_ = 0;
  mutable OrtAllocator* allocator_ = nullptr;  // fetched at the first use
};

template <typename T>
class Scratch {
 public:
  Scratch(const Context& context, int64_t count)
      : context_(context), data_(static_cast<T*>(context.allocate(sizeof(T) * static_cast<size_t>(count)))) {}
  Scratch(const Scratch&) = delete;
  ~Scratch() { context_.release(data_); }

  T* data() const { return data_; }

 private:
  const Context& context_;
  T* data_;
};

}  // namespace onnxfuse
