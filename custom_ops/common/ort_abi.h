// The part of ONNX Runtime's C ABI that the operators use, declared here so that the build needs none of its headers.
//
// The runtime hands out one table of function pointers that is only ever appended to, so a function is known for good
// by its position ("slot") and its type. ort_abi_check.cc compares this file with the official header where there is
// one.
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtAllocator;
struct OrtCustomOpDomain;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtMemoryInfo;
struct OrtOpAttr;
struct OrtSessionOptions;
struct OrtShapeInferContext;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;

namespace onnxfuse::ort {

inline constexpr uint32_t kApiVersion = 18;               // ONNX Runtime 1.18, the oldest one supported
inline constexpr uint32_t kApiVersionWithShapeData = 24;  // the first with GetTensorElementTypeAndShapeDataReference

// Before, the runtime dereferences a null pointer on the way to the shape inference of a node that lacks an optional
// input.
inline constexpr uint32_t kApiVersionInferringWithoutOptionalInputs = 24;
// Before, the runtime aborts when the shape of an output is set that the node lacks.
inline constexpr uint32_t kApiVersionCheckingOutputs = 28;

// Values of the official enumerations; in the ABI they are plain ints.
inline constexpr int kErrorFail = 1;
inline constexpr int kErrorInvalidArgument = 2;
inline constexpr int kRequired = 0;
inline constexpr int kOptional = 1;
inline constexpr int kAttributeInt = 1;
inline constexpr int kArenaAllocator = 1;
inline constexpr int kMemoryDefault = 0;

// Of CUDA's resources that a kernel can ask for, in their third version, as numbered since ONNX Runtime 1.18: the
// provider option use_tf32, null for no.
inline constexpr int kCudaResources = 3;
inline constexpr int kCudaUsesTf32 = 10011;

struct CustomOp;

// SLOT(position, name, result, parameters...)
#define ONNXFUSE_ORT_SLOTS(SLOT)                                                                                       \
  SLOT(0, CreateStatus, OrtStatus*, int code, const char* message)                                                     \
  SLOT(2, GetErrorMessage, const char*, const OrtStatus*)                                                              \
  SLOT(26, CreateCustomOpDomain, OrtStatus*, const char* domain, OrtCustomOpDomain** out)                              \
  SLOT(27, CustomOpDomain_Add, OrtStatus*, OrtCustomOpDomain*, const ONNXFUSE_ORT_CUSTOM_OP*)                          \
  SLOT(28, AddCustomOpDomain, OrtStatus*, OrtSessionOptions*, OrtCustomOpDomain*)                                      \
  SLOT(51, GetTensorMutableData, OrtStatus*, OrtValue*, void** out)                                                    \
  SLOT(57, CreateTensorTypeAndShapeInfo, OrtStatus*, OrtTensorTypeAndShapeInfo** out)                                  \
  SLOT(58, SetTensorElementType, OrtStatus*, OrtTensorTypeAndShapeInfo*, ONNXFUSE_ORT_DTYPE)                           \
  SLOT(59, SetDimensions, OrtStatus*, OrtTensorTypeAndShapeInfo*, const int64_t* dims, size_t rank)                    \
  SLOT(60, GetTensorElementType, OrtStatus*, const OrtTensorTypeAndShapeInfo*, ONNXFUSE_ORT_DTYPE* out)                \
  SLOT(61, GetDimensionsCount, OrtStatus*, const OrtTensorTypeAndShapeInfo*, size_t* out)                              \
  SLOT(62, GetDimensions, OrtStatus*, const OrtTensorTypeAndShapeInfo*, int64_t* dims, size_t rank)                    \
  SLOT(63, GetSymbolicDimensions, OrtStatus*, const OrtTensorTypeAndShapeInfo*, const char** names, size_t rank)       \
  SLOT(65, GetTensorTypeAndShape, OrtStatus*, const OrtValue*, OrtTensorTypeAndShapeInfo** out)                        \
  SLOT(69, CreateCpuMemoryInfo, OrtStatus*, int allocator_type, int memory_type, OrtMemoryInfo** out)                  \
  SLOT(75, AllocatorAlloc, OrtStatus*, OrtAllocator*, size_t bytes, void** out)                                        \
  SLOT(76, AllocatorFree, OrtStatus*, OrtAllocator*, void*)                                                            \
  SLOT(77, AllocatorGetInfo, OrtStatus*, const OrtAllocator*, const OrtMemoryInfo** out)                               \
  SLOT(85, KernelInfoGetAttribute_float, OrtStatus*, const OrtKernelInfo*, const char* name, float* out)               \
  SLOT(86, KernelInfoGetAttribute_int64, OrtStatus*, const OrtKernelInfo*, const char* name, int64_t* out)             \
  SLOT(87, KernelInfoGetAttribute_string, OrtStatus*, const OrtKernelInfo*, const char* name, char* out, size_t* size) \
  SLOT(88, KernelContext_GetInputCount, OrtStatus*, const OrtKernelContext*, size_t* out)                              \
  SLOT(89, KernelContext_GetOutputCount, OrtStatus*, const OrtKernelContext*, size_t* out)                             \
  SLOT(90, KernelContext_GetInput, OrtStatus*, const OrtKernelContext*, size_t index, const OrtValue** out)            \
  SLOT(91, KernelContext_GetOutput, OrtStatus*, OrtKernelContext*, size_t index, const int64_t* dims, size_t rank,     \
       OrtValue** out)                                                                                                 \
  SLOT(93, ReleaseStatus, void, OrtStatus*)                                                                            \
  SLOT(99, ReleaseTensorTypeAndShapeInfo, void, OrtTensorTypeAndShapeInfo*)                                            \
  SLOT(132, ReleaseAllocator, void, OrtAllocator*)                                                                     \
  SLOT(193, KernelContext_GetGPUComputeStream, OrtStatus*, const OrtKernelContext*, void** out)                        \
  SLOT(237, HasSessionConfigEntry, OrtStatus*, const OrtSessionOptions*, const char* key, int* out)                    \
  SLOT(238, GetSessionConfigEntry, OrtStatus*, const OrtSessionOptions*, const char* key, char* out, size_t* size)     \
  SLOT(244, KernelInfo_GetNodeName, OrtStatus*, const OrtKernelInfo*, char* out, size_t* size)                         \
  SLOT(249, KernelInfoGetConstantInput_tensor, OrtStatus*, const OrtKernelInfo*, size_t index, int* is_constant,       \
       const OrtValue** out)                                                                                           \
  SLOT(253, KernelContext_GetAllocator, OrtStatus*, const OrtKernelContext*, const OrtMemoryInfo*, OrtAllocator** out) \
  SLOT(265, KernelContext_GetResource, OrtStatus*, const OrtKernelContext*, int version, int resource, void** out)     \
  SLOT(267, ShapeInferContext_GetInputCount, OrtStatus*, const OrtShapeInferContext*, size_t* out)                     \
  SLOT(268, ShapeInferContext_GetInputTypeShape, OrtStatus*, const OrtShapeInferContext*, size_t index,                \
       OrtTensorTypeAndShapeInfo** out)                                                                                \
  SLOT(269, ShapeInferContext_GetAttribute, OrtStatus*, const OrtShapeInferContext*, const char* name,                 \
       const OrtOpAttr** out)                                                                                          \
  SLOT(270, ShapeInferContext_SetOutputTypeShape, OrtStatus*, const OrtShapeInferContext*, size_t index,               \
       const OrtTensorTypeAndShapeInfo*)                                                                               \
  SLOT(271, SetSymbolicDimensions, OrtStatus*, OrtTensorTypeAndShapeInfo*, const char** names, size_t rank)            \
  SLOT(272, ReadOpAttr, OrtStatus*, const OrtOpAttr*, int type, void* data, size_t size, size_t* out)                  \
  SLOT(274, KernelContext_ParallelFor, OrtStatus*, const OrtKernelContext*, void (*body)(void*, size_t), size_t total, \
       size_t batches, void* user)                                                                                     \
  SLOT(277, KernelContext_GetScratchBuffer, OrtStatus*, const OrtKernelContext*, const OrtMemoryInfo*, size_t bytes,   \
       void** out)                                                                                                     \
  SLOT(278, KernelInfoGetAllocator, OrtStatus*, const OrtKernelInfo*, int memory_type, OrtAllocator** out)

// Present since API 24 only.
#define ONNXFUSE_ORT_SLOTS_API_24(SLOT)                                                                        \
  SLOT(414, GetTensorElementTypeAndShapeDataReference, OrtStatus*, const OrtValue*, ONNXFUSE_ORT_DTYPE* dtype, \
       const int64_t** dims, size_t* rank)

#define ONNXFUSE_ORT_CUSTOM_OP CustomOp
#define ONNXFUSE_ORT_DTYPE int
#define ONNXFUSE_DECLARE_SLOT(position, name, result, ...) result (*name)(__VA_ARGS__) = nullptr;

// The functions of the table by name.
struct Api {
  uint32_t version = 0;  // of the runtime: 28 for ONNX Runtime 1.28
  ONNXFUSE_ORT_SLOTS(ONNXFUSE_DECLARE_SLOT)
  ONNXFUSE_ORT_SLOTS_API_24(ONNXFUSE_DECLARE_SLOT)  // null on an older runtime
};

struct ApiBase {
  void* const* (*GetApi)(uint32_t version);  // null if the runtime is older than the version
  const char* (*GetVersionString)();
};

// One operator for one mix of dtypes, as the runtime reads it: a version and pointers in a fixed order.
struct CustomOp {
  uint32_t version = kApiVersion;
  void* (*CreateKernel)(const CustomOp*, void* const* api, const OrtKernelInfo*) = nullptr;
  const char* (*GetName)(const CustomOp*) = nullptr;
  const char* (*GetExecutionProviderType)(const CustomOp*) = nullptr;
  int (*GetInputType)(const CustomOp*, size_t index) = nullptr;
  size_t (*GetInputTypeCount)(const CustomOp*) = nullptr;
  int (*GetOutputType)(const CustomOp*, size_t index) = nullptr;
  size_t (*GetOutputTypeCount)(const CustomOp*) = nullptr;
  void (*KernelCompute)(void* kernel, OrtKernelContext*) = nullptr;
  void (*KernelDestroy)(void* kernel) = nullptr;
  int (*GetInputCharacteristic)(const CustomOp*, size_t index) = nullptr;
  int (*GetOutputCharacteristic)(const CustomOp*, size_t index) = nullptr;
  int (*GetInputMemoryType)(const CustomOp*, size_t index) = nullptr;
  int (*GetVariadicInputMinArity)(const CustomOp*) = nullptr;
  int (*GetVariadicInputHomogeneity)(const CustomOp*) = nullptr;
  int (*GetVariadicOutputMinArity)(const CustomOp*) = nullptr;
  int (*GetVariadicOutputHomogeneity)(const CustomOp*) = nullptr;
  OrtStatus* (*CreateKernelV2)(const CustomOp*, void* const* api, const OrtKernelInfo*, void** kernel) = nullptr;
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*) = nullptr;
  OrtStatus* (*InferOutputShapeFn)(const CustomOp*, OrtShapeInferContext*) = nullptr;
  int (*GetStartVersion)(const CustomOp*) = nullptr;
  int (*GetEndVersion)(const CustomOp*) = nullptr;
  size_t (*GetMayInplace)(int** inputs, int** outputs) = nullptr;
  void (*ReleaseMayInplace)(int* inputs, int* outputs) = nullptr;
  size_t (*GetAliasMap)(int** inputs, int** outputs) = nullptr;
  void (*ReleaseAliasMap)(int* inputs, int* outputs) = nullptr;
};

// The functions of the runtime that loaded the library; filled in before any operator is created.
extern Api api;

}  // namespace onnxfuse::ort
