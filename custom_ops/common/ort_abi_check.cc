// Compares ort_abi.h with the official header: every slot's position and type, and the layout of OrtCustomOp.
// Compiles to nothing; without the header there is nothing to compare with.
#if __has_include(<onnxruntime_c_api.h>)
#include <onnxruntime_c_api.h>

#include <cstddef>
#include <type_traits>

#include "common/ort_abi.h"

// The header's functions carry attributes (unused result, nonnull) that do not matter to the comparison of types.
#pragma GCC diagnostic ignored "-Wignored-attributes"

namespace onnxfuse::ort {
namespace {

// What a type is in the C ABI: enumerations are ints, and names that only we or only the header know are equal.
template <typename T>
struct Plain {
  using type = std::conditional_t<std::is_enum_v<T>, int, T>;
};
template <>
struct Plain<::OrtCustomOp> {
  using type = CustomOp;
};
template <>
struct Plain<const ::OrtApi*> {
  using type = void* const*;
};
template <typename T>
struct Plain<const T> {
  using type = const typename Plain<T>::type;
};
template <typename T>
struct Plain<T*> {
  using type = typename Plain<T>::type*;
};
template <typename R, typename... Args>
struct Plain<R (*)(Args...)> {
  using type = typename Plain<R>::type (*)(typename Plain<Args>::type...);
};
template <typename R, typename... Args>
struct Plain<R (*)(Args...) noexcept> : Plain<R (*)(Args...)> {};

template <typename Ours, typename Theirs>
inline constexpr bool kSame = std::is_same_v<Ours, typename Plain<Theirs>::type>;

#define ONNXFUSE_CHECK_SLOT(position, name, ...)                                             \
  static_assert(offsetof(::OrtApi, name) == position * sizeof(void*), "position of " #name); \
  static_assert(kSame<decltype(Api::name), decltype(::OrtApi::name)>, "type of " #name);
ONNXFUSE_ORT_SLOTS(ONNXFUSE_CHECK_SLOT)
#if ORT_API_VERSION >= 24
ONNXFUSE_ORT_SLOTS_API_24(ONNXFUSE_CHECK_SLOT)
#endif

#define ONNXFUSE_CHECK_MEMBER(name)                                                               \
  static_assert(offsetof(CustomOp, name) == offsetof(::OrtCustomOp, name), "position of " #name); \
  static_assert(kSame<decltype(CustomOp::name), decltype(::OrtCustomOp::name)>, "type of " #name);
ONNXFUSE_CHECK_MEMBER(CreateKernel)
ONNXFUSE_CHECK_MEMBER(GetName)
ONNXFUSE_CHECK_MEMBER(GetExecutionProviderType)
ONNXFUSE_CHECK_MEMBER(GetInputType)
ONNXFUSE_CHECK_MEMBER(GetInputTypeCount)
ONNXFUSE_CHECK_MEMBER(GetOutputType)
ONNXFUSE_CHECK_MEMBER(GetOutputTypeCount)
ONNXFUSE_CHECK_MEMBER(KernelCompute)
ONNXFUSE_CHECK_MEMBER(KernelDestroy)
ONNXFUSE_CHECK_MEMBER(GetInputCharacteristic)
ONNXFUSE_CHECK_MEMBER(GetOutputCharacteristic)
ONNXFUSE_CHECK_MEMBER(GetInputMemoryType)
ONNXFUSE_CHECK_MEMBER(GetVariadicInputMinArity)
ONNXFUSE_CHECK_MEMBER(GetVariadicInputHomogeneity)
ONNXFUSE_CHECK_MEMBER(GetVariadicOutputMinArity)
ONNXFUSE_CHECK_MEMBER(GetVariadicOutputHomogeneity)
ONNXFUSE_CHECK_MEMBER(CreateKernelV2)
ONNXFUSE_CHECK_MEMBER(KernelComputeV2)
ONNXFUSE_CHECK_MEMBER(InferOutputShapeFn)
ONNXFUSE_CHECK_MEMBER(GetStartVersion)
ONNXFUSE_CHECK_MEMBER(GetEndVersion)
ONNXFUSE_CHECK_MEMBER(GetMayInplace)
ONNXFUSE_CHECK_MEMBER(ReleaseMayInplace)
ONNXFUSE_CHECK_MEMBER(GetAliasMap)
ONNXFUSE_CHECK_MEMBER(ReleaseAliasMap)

static_assert(kErrorFail == ORT_FAIL && kErrorInvalidArgument == ORT_INVALID_ARGUMENT);
static_assert(kRequired == INPUT_OUTPUT_REQUIRED && kOptional == INPUT_OUTPUT_OPTIONAL);
static_assert(kAttributeInt == ORT_OP_ATTR_INT);
static_assert(kArenaAllocator == OrtArenaAllocator && kMemoryDefault == OrtMemTypeDefault);

}  // namespace
}  // namespace onnxfuse::ort
#endif
