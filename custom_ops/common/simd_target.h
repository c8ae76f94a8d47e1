// The instruction set that the kernels use, chosen once when the library is first registered.
#pragma once

// Whether the compiler knows AMX, Intel's matrix unit, and the instructions that came before it.
#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define ONNXFUSE_HAS_AMX 1
#else
#define ONNXFUSE_HAS_AMX 0
#endif

namespace onnxfuse {

// kAvx512Bf16 is kAvx512 with products by bfloat16 weights on VDPBF16PS, kAmx with matrix products on AMX.
enum class SimdTarget { kScalar, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// The best target of this machine, or the lower one that the environment variable ONNXFUSE_SIMD
// (scalar, avx2, avx512, avx512_bf16 or amx) asks for. Throws if the variable names no target or one that the machine
// lacks.
SimdTarget simd_target();

// Picks the instance of a kernel for the target: ONNXFUSE_KERNEL(rms_norm_rows<float, float>) is a function pointer.
#if defined(__x86_64__)
#define ONNXFUSE_KERNEL(...) ::onnxfuse::pick(&scalar::__VA_ARGS__, &avx2::__VA_ARGS__, &avx512::__VA_ARGS__)

template <class Function>
Function* pick(Function* scalar, Function* avx2, Function* avx512) {
  switch (simd_target()) {
    case SimdTarget::kAmx:
    case SimdTarget::kAvx512Bf16:
    case SimdTarget::kAvx512:
      return avx512;
    case SimdTarget::kAvx2:
      return avx2;
    case SimdTarget::kScalar:
      break;
  }
  return scalar;
}
#else
#define ONNXFUSE_KERNEL(...) (&scalar::__VA_ARGS__)
#endif

}  // namespace onnxfuse
