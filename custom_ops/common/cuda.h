// The host's side of CUDA kernels: launching on the stream of a run, errors, memory for intermediate results.
//
// Nothing here waits for the device or allocates from the driver, so that a run can be captured in a CUDA graph.
#pragma once

#include <cuda_runtime.h>

#include "common/context.h"

namespace onnxfuse::cuda {

inline constexpr int kWarp = 32;

inline void check(cudaError_t error, const char* what) {
  require(error == cudaSuccess, "CUDA: ", what, ": ", cudaGetErrorString(error));
}

__host__ __device__ inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline unsigned blocks(int64_t count) {
  constexpr int64_t kMost = 0x7fffffff;
  require(count <= kMost, "the tensors need ", count, " blocks of threads, expected at most ", kMost);
  return static_cast<unsigned>(count);
}

// Whether 16-byte loads and stores may be used at an address.
inline bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// A number of the device that runs the calling thread's kernels.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "the current device");
  check(cudaDeviceGetAttribute(&value, attribute, device), "an attribute of the device");
  return value;
}

// What find() says of the device that runs the calling thread's kernels. It is asked once, until that is another one.
template <class Find>
const auto& of_current_device(const Find& find) {
  thread_local int known_device = -1;
  thread_local decltype(find()) known{};
  int device = 0;
  check(cudaGetDevice(&device), "the current device");
  if (device != known_device) {
    known = find();
    known_device = device;
  }
  return known;
}

// Whether kernels, as compiled for the current device, can wait for those before them, see early_start.cuh, and its
// blocks can have kMostSharedBytes: compute capability 9.0 and 10.0, not 12.0.
bool can_start_early();

inline constexpr int kMostSharedBytes = 227 << 10;

// Lets a kernel have all the shared memory that the current device grants a block. A limit as large as each launch
// needs would be lowered by other threads before the launch.
void allow_most_shared_memory(const void* kernel, const char* name);

// Has a kernel's multiprocessors divide their memory as those of all others that start early: kernels share one only
// then. 196 KB are shared, 60 KB are for loads on their way to registers.
void divide_memory_alike(const void* kernel, const char* name);

inline constexpr int kMostClusterBlocks = 8;  // of a cluster that every device grants

// Shared memory of which a multiprocessor of compute capability 9.0 has less than twice as much.
inline constexpr int kBytesAlone = 116 << 10;

// How many clusters of `size` blocks run on the current device at once if up to `sharing` blocks, at most four, share a
// multiprocessor. Only where kernels can start early.
int clusters_at_once(int size, int sharing = 1);

// Whether the current device is of compute capability 9.0 and the build holds code for 9.0a, see hopper.cuh.
bool has_hopper();

// Launches on the stream of a run.
class Stream {
 public:
  explicit Stream(const Context& context) : Stream(static_cast<cudaStream_t>(context.gpu_stream())) {
    context_ = &context;
  }
  explicit Stream(cudaStream_t stream) : stream_(stream) {}

  template <class... Parameters, class... Arguments>
  void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared_bytes,
              const Arguments&... arguments) const {
    launch_as(false, 1, name, kernel, grid, threads, shared_bytes, arguments...);
  }

  // For a kernel that calls wait_for_previous(): it may start before the kernel before it ends.
  template <class... Parameters, class... Arguments>
  void launch_early(const char* name, void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared_bytes,
                    const Arguments&... arguments) const {
    launch_as(can_start_early(), 1, name, kernel, grid, threads, shared_bytes, arguments...);
  }

  // With so many neighbouring blocks in a cluster; as launch_early if `early`. Where kernels can start early only.
  template <class... Parameters, class... Arguments>
  void launch_clusters(const char* name, bool early, void (*kernel)(Parameters...), dim3 grid, unsigned cluster,
                       unsigned threads, size_t shared_bytes, const Arguments&... arguments) const {
    if (early) divide_memory_alike(reinterpret_cast<const void*>(kernel), name);
    launch_as(early, cluster, name, kernel, grid, threads, shared_bytes, arguments...);
  }

  cudaStream_t get() const { return stream_; }

  // Whether products of float32 may round their factors to the 11 significant bits of TF32.
  bool allows_tf32() const { return context_ != nullptr && context_->gpu_allows_tf32(); }

  void copy(void* to, const void* from, size_t bytes) const {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_), "a copy on the device");
  }

 private:
  template <class... Parameters, class... Arguments>
  void launch_as(bool early, unsigned cluster, const char* name, void (*kernel)(Parameters...), dim3 grid,
                 unsigned threads, size_t shared_bytes, const Arguments&... arguments) const {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    constexpr size_t kWithoutAsking = 32 << 10;  // 48, but for what kernels declare themselves
    if (shared_bytes > kWithoutAsking) allow_most_shared_memory(reinterpret_cast<const void*>(kernel), name);
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = threads;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream_;
    cudaLaunchAttribute attributes[2] = {};
    if (early) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute.val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
      cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = cluster;
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    }
    config.attrs = attributes;
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
  }

  cudaStream_t stream_;
  const Context* context_ = nullptr;
};

// The memory of the device that a node runs on.
class DeviceMemory {
 public:
  explicit DeviceMemory(const NodeInfo& node) : allocator_(node.allocator()) {
    onnxfuse::check(ort::api.AllocatorGetInfo(allocator_, &info_));
  }
  DeviceMemory(const DeviceMemory&) = delete;
  ~DeviceMemory() { ort::api.ReleaseAllocator(allocator_); }

 private:
  friend class DeviceScratch;
  OrtAllocator* allocator_;
  const OrtMemoryInfo* info_;
};

// Memory for what one run launches. It belongs to the run's stream: handing it back while the kernels that use it still
// wait in the stream is fine, the arena gives it to later work of the same stream only.
class DeviceScratch {
 public:
  DeviceScratch(const Context& context, const DeviceMemory& memory, int64_t bytes)
      : memory_(memory), data_(context.gpu_scratch(memory.info_, static_cast<size_t>(bytes))) {}
  DeviceScratch(const DeviceScratch&) = delete;
  ~DeviceScratch() {
    if (data_ != nullptr) take_error(ort::api.AllocatorFree(memory_.allocator_, data_));
  }

  template <typename T>
  T* at(int64_t byte) const {
    return reinterpret_cast<T*>(static_cast<char*>(data_) + byte);
  }

 private:
  const DeviceMemory& memory_;
  void* data_;
};

}  // namespace onnxfuse::cuda
