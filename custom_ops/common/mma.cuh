// Tensor-core products and the asynchronous copies that feed them (compute capability 8.0).
//
// A warp multiplies A: [16, 16] by B: [16, 8] of 16-bit numbers and adds to C: [16, 8] float32. Lane l holds of C, at
// c[0] and c[1], row l / 4, columns 2 (l % 4) and the next, and at c[2] and c[3] the same of row l / 4 + 8. Two such C
// next to each other, rounded and packed, are the A of another product.
//
// Of float32 A is [16, 8] and B [8, 8], where l holds places l % 4 and l % 4 + 4 of row or column l / 4. One C is the A
// of another product if that adds up in another order: place l % 4 is column 2 (l % 4), place l % 4 + 4 the next.
#pragma once

#include "common/device.cuh"

namespace onnxfuse::cuda {

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Copies 16 bytes to shared memory in the background, or writes zeros without reading.
__device__ inline void copy_async(uint32_t to, const void* from, bool reads) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(reads ? 16 : 0) : "memory");
}
__device__ inline void copy_async(void* to, const void* from, bool reads) {
  copy_async(shared_address(to), from, reads);
}
// Copies like that of what is read once, which leaves the second-level cache before all else.
class ReadOnce {
 public:
  __device__ ReadOnce() { asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy_)); }

  __device__ void copy_async(uint32_t to, const void* from, bool reads) const {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(from),
                 "r"(reads ? 16 : 0), "l"(policy_)
                 : "memory");
  }

 private:
  uint64_t policy_;
};
// 4 or 8 bytes.
template <int kBytes>
__device__ inline void copy_async(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to)), "l"(from), "n"(kBytes)
               : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending of the latest commits are under way.
template <int kPending>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four matrices of 8 x 8; lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

template <typename T>
__device__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ inline void multiply_add<Half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void multiply_add<BFloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Of numbers rounded to TF32.
template <>
__device__ inline void multiply_add<float>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// To the 11 significant bits of TF32.
__device__ inline uint32_t round_to_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}

// The lower or upper halves of two registers in one.
__device__ inline uint32_t lower_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); }
__device__ inline uint32_t upper_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); }

// Two neighbours in one register, the first in the lower half.
template <typename T>
__device__ inline uint32_t pack(float first, float second) {
  return narrow<T>(first).bits | static_cast<uint32_t>(narrow<T>(second).bits) << 16;
}

// What a lane holds of an A (four registers) or a B (two).
template <typename T, int kCount, bool kSplit>
struct Factor {
  uint32_t lead[kCount];

  __device__ void set(const uint32_t* registers) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) lead[i] = registers[i];
  }
  // The A that two C next to each other are.
  __device__ void set_results(const float* c) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) lead[i] = pack<T>(c[2 * i], c[2 * i + 1]);
  }
};

// Float32, rounded to TF32 or split in two: 11 significant bits and what they leave, rounded to as many.
template <int kCount, bool kSplit>
struct Factor<float, kCount, kSplit> {
  uint32_t lead[kCount], rest[kCount];

  __device__ void set(const uint32_t* registers) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) set(i, __uint_as_float(registers[i]));
  }
  // The A that one C is.
  __device__ void set_results(const float* c) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) set(i, c[i / 2 + i % 2 * 2]);
  }

 private:
  __device__ void set(int i, float x) {
    if constexpr (kSplit) {
      lead[i] = __float_as_uint(x) & 0xffffe000;
      rest[i] = round_to_tf32(x - __uint_as_float(lead[i]));
    } else {
      lead[i] = round_to_tf32(x);
    }
  }
};

// c += a b; of split factors as exact as sums in float32. Tensor cores cut off what they add up (Ootomo and Yokota
// 2022, arXiv:2203.03341), so that such sums are done outside of them.
template <typename T, bool kSplit>
__device__ inline void multiply_add(float (&c)[4], const Factor<T, 4, kSplit>& a, const Factor<T, 2, kSplit>& b) {
  if constexpr (kSplit) {
    float sum[4] = {};
    multiply_add<T>(sum, a.rest, b.lead[0], b.lead[1]);
    multiply_add<T>(sum, a.lead, b.rest[0], b.rest[1]);
    multiply_add<T>(sum, a.lead, b.lead[0], b.lead[1]);
#pragma unroll
    for (int i = 0; i < 4; ++i) c[i] += sum[i];
  } else {
    multiply_add<T>(c, a.lead, b.lead[0], b.lead[1]);
  }
}

}  // namespace onnxfuse::cuda
