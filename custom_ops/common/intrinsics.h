// The processor's instructions as functions, and how code around them is compiled.
#pragma once

#if defined(__x86_64__)
// GCC 12 takes the deliberately undefined operands inside the intrinsics for mistakes.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#define ONNXFUSE_INLINE inline __attribute__((always_inline))
#define ONNXFUSE_UNROLL _Pragma("GCC unroll 32")
