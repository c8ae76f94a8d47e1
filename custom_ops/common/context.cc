#include "common/context.h"

#include <algorithm>
#include <thread>

namespace onnxfuse {
namespace {

// A hand-over to another thread costs about 2 us; below this much work it does not pay.
constexpr double kSerialNanoseconds = 5000;
constexpr double kChunkNanoseconds = 2000;

// The runtime reports an absent attribute and one of another type alike, so look whether the name is known at all.
bool has_attribute(const OrtKernelInfo* info, const char* name) {
  float real;
  int64_t integer;
  size_t size = 0;
  return take_error(ort::api.KernelInfoGetAttribute_float(info, name, &real)).empty() ||
         take_error(ort::api.KernelInfoGetAttribute_int64(info, name, &integer)).empty() ||
         take_error(ort::api.KernelInfoGetAttribute_string(info, name, nullptr, &size)).empty();
}

template <typename T>
T default_or_fail(const OrtKernelInfo* info, const char* name, const char* type, const std::optional<T>& otherwise) {
  require(!has_attribute(info, name), "attribute ", name, " is not ", type, "; make it one");
  require(otherwise.has_value(), "attribute ", name, " is missing; set it to ", type);
  return *otherwise;
}

}  // namespace

std::string NodeInfo::name() const {
  size_t size = 0;
  check(ort::api.KernelInfo_GetNodeName(info_, nullptr, &size));
  std::string name(size, '\0');
  check(ort::api.KernelInfo_GetNodeName(info_, name.data(), &size));
  name.resize(size - 1);  // the terminating zero
  return name;
}

float NodeInfo::real(const char* name, std::optional<float> otherwise) const {
  float value;
  if (take_error(ort::api.KernelInfoGetAttribute_float(info_, name, &value)).empty()) return value;
  return default_or_fail(info_, name, "a float", otherwise);
}

int64_t NodeInfo::integer(const char* name, std::optional<int64_t> otherwise) const {
  int64_t value;
  if (take_error(ort::api.KernelInfoGetAttribute_int64(info_, name, &value)).empty()) return value;
  return default_or_fail(info_, name, "an int", otherwise);
}

std::string NodeInfo::text(const char* name, std::optional<std::string> otherwise) const {
  size_t size = 0;
  if (!take_error(ort::api.KernelInfoGetAttribute_string(info_, name, nullptr, &size)).empty()) {
    return default_or_fail(info_, name, "a string", otherwise);
  }
  std::string value(size, '\0');
  check(ort::api.KernelInfoGetAttribute_string(info_, name, value.data(), &size));
  value.resize(size - 1);
  return value;
}

bool NodeInfo::is_constant(size_t input) const {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  check(ort::api.KernelInfoGetConstantInput_tensor(info_, input, &is_constant, &value));
  return is_constant != 0;
}

OrtAllocator* NodeInfo::allocator() const {
  OrtAllocator* allocator = nullptr;
  check(ort::api.KernelInfoGetAllocator(info_, ort::kMemoryDefault, &allocator));
  return allocator;
}

Context::Context(OrtKernelContext* context) : context_(context) {
  check(ort::api.KernelContext_GetInputCount(context_, &input_count_));
  check(ort::api.KernelContext_GetOutputCount(context_, &output_count_));
}

Context::~Context() {
  if (allocator_ != nullptr) ort::api.ReleaseAllocator(allocator_);
}

AnyTensor Context::input(size_t index) const {
  if (index >= input_count_) return {};
  const OrtValue* value = nullptr;
  check(ort::api.KernelContext_GetInput(context_, index, &value));
  if (value == nullptr) return {};

  AnyTensor tensor;
  tensor.present = true;
  void* data = nullptr;
  check(ort::api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  tensor.data = data;
  int dtype = 0;
  size_t rank = 0;
  if (ort::api.GetTensorElementTypeAndShapeDataReference != nullptr) {
    const int64_t* dims = nullptr;
    check(ort::api.GetTensorElementTypeAndShapeDataReference(value, &dtype, &dims, &rank));
    tensor.shape = Shape(dims, rank);
  } else {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(ort::api.GetTensorTypeAndShape(value, &info));
    std::string error = take_error(ort::api.GetTensorElementType(info, &dtype));
    if (error.empty()) error = take_error(ort::api.GetDimensionsCount(info, &rank));
    int64_t dims[kMaxRank] = {};
    if (error.empty() && rank <= kMaxRank) error = take_error(ort::api.GetDimensions(info, dims, rank));
    ort::api.ReleaseTensorTypeAndShapeInfo(info);
    require(error.empty(), error);
    tensor.shape = Shape(dims, rank);
  }
  tensor.dtype = static_cast<DType>(dtype);
  return tensor;
}

bool Context::allocate_output(size_t index, const Shape& shape, void** data) const {
  if (index >= output_count_) return false;
  OrtValue* value = nullptr;
  check(ort::api.KernelContext_GetOutput(context_, index, shape.data(), static_cast<size_t>(shape.rank()), &value));
  if (value == nullptr) return false;
  check(ort::api.GetTensorMutableData(value, data));
  return true;
}

int64_t Context::chunk_count(int64_t count, double nanoseconds_each) {
  static const int64_t most = std::max<int64_t>(16, 4 * std::thread::hardware_concurrency());
  const double total = static_cast<double>(count) * nanoseconds_each;
  if (total < kSerialNanoseconds) return 1;
  return std::min({count, most, static_cast<int64_t>(total / kChunkNanoseconds)});
}

void* Context::gpu_stream() const {
  void* stream = nullptr;
  check(ort::api.KernelContext_GetGPUComputeStream(context_, &stream));
  return stream;
}

void* Context::gpu_scratch(const OrtMemoryInfo* device, size_t bytes) const {
  void* memory = nullptr;
  check(ort::api.KernelContext_GetScratchBuffer(context_, device, bytes, &memory));
  return memory;
}

bool Context::gpu_allows_tf32() const {
  void* allowed = nullptr;  // stays so where the runtime does not know
  take_error(ort::api.KernelContext_GetResource(context_, ort::kCudaResources, ort::kCudaUsesTf32, &allowed));
  return allowed != nullptr;
}

void* Context::allocate(size_t bytes) const {
  static OrtMemoryInfo* const cpu = [] {
    OrtMemoryInfo* info = nullptr;
    check(ort::api.CreateCpuMemoryInfo(ort::kArenaAllocator, ort::kMemoryDefault, &info));
    return info;
  }();
  if (allocator_ == nullptr) check(ort::api.KernelContext_GetAllocator(context_, cpu, &allocator_));
  void* memory = nullptr;
  check(ort::api.AllocatorAlloc(allocator_, bytes, &memory));
  return memory;
}

void Context::release(void* memory) const {
  if (memory != nullptr) take_error(ort::api.AllocatorFree(allocator_, memory));
}

}  // namespace onnxfuse
