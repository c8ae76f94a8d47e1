// Includes the file that ONNXFUSE_KERNELS names once for each SIMD target: in namespace scalar, avx2 and avx512,
// compiled with that target's instructions. There a kernel is written once, on the type Vec of vec_<target>.h:
//
//   #define ONNXFUSE_KERNELS "swiglu/swiglu_kernel.h"
//   #include "common/each_target.h"
//   ... ONNXFUSE_KERNEL(swiglu<float>)(gate, up, y, count);    // in the adapter, see simd_target.h
//
// The kernel file includes no header of the standard library: its text lands inside a namespace. Whatever it needs is
// included above it. All of it is local to the including file, so equal names in two operators do not collide.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "common/dtype.h"
#include "common/intrinsics.h"

namespace onnxfuse {
namespace {

struct All {};  // the count of lanes of a load or store that moves a whole vector

}  // namespace
}  // namespace onnxfuse

namespace onnxfuse {
namespace {
namespace scalar {
#include "common/vec_scalar.h"
//
#include "common/vec_math.h"
//
#include ONNXFUSE_KERNELS
}  // namespace scalar
}  // namespace
}  // namespace onnxfuse

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace onnxfuse {
namespace {
namespace avx2 {
#include "common/vec_avx2.h"
//
#include "common/vec_math.h"
//
#include ONNXFUSE_KERNELS
}  // namespace avx2
}  // namespace
}  // namespace onnxfuse
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#endif
namespace onnxfuse {
namespace {
namespace avx512 {
#include "common/vec_avx512.h"
//
#include "common/vec_math.h"
//
#include ONNXFUSE_KERNELS
}  // namespace avx512
}  // namespace
}  // namespace onnxfuse
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // __x86_64__

#undef ONNXFUSE_KERNELS
