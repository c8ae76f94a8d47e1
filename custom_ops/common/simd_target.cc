#include "common/simd_target.h"

#include <cstdlib>
#include <iterator>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if ONNXFUSE_HAS_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "common/error.h"

namespace onnxfuse {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "avx512_bf16", "amx"};

// Whether there is AMX for bfloat16 and int8 and the operating system lets this process use it.
bool has_amx() {
#if ONNXFUSE_HAS_AMX
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25, kNeeded = kBf16 | kTile | kInt8;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & kNeeded) != kNeeded) return false;
  // Linux saves the tile registers for a process that has asked for them (arch_prctl, ARCH_REQ_XCOMP_PERM).
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool has_bf16() {
#if ONNXFUSE_HAS_AMX
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

SimdTarget best_target() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);  // no builtin name for it in old clang
  if (f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (!avx512) return SimdTarget::kAvx2;
    if (has_amx()) return SimdTarget::kAmx;
    return has_bf16() ? SimdTarget::kAvx512Bf16 : SimdTarget::kAvx512;
  }
#endif
  return SimdTarget::kScalar;
}

SimdTarget chosen_target() {
  const SimdTarget best = best_target();
  const char* asked = std::getenv("ONNXFUSE_SIMD");
  if (asked == nullptr || *asked == '\0') return best;
  for (int i = 0; i < static_cast<int>(std::size(kNames)); ++i) {
    if (std::string(asked) != kNames[i]) continue;
    require(i <= static_cast<int>(best), "ONNXFUSE_SIMD is ", asked, ", but this machine only has ",
            kNames[static_cast<int>(best)], "; unset it or take a lower one");
    return static_cast<SimdTarget>(i);
  }
  fail("ONNXFUSE_SIMD is '", asked, "', expected scalar, avx2, avx512, avx512_bf16 or amx");
}

}  // namespace

SimdTarget simd_target() {
  static const SimdTarget target = chosen_target();
  return target;
}

}  // namespace onnxfuse
