// Hopper's tensor cores (compute capability 9.0a): products of a warpgroup with operands in shared memory, barriers in
// shared memory, and how a block shares out its registers. The code exists only where the compiler is asked for 9.0a.
//
// A warpgroup, four warps from a multiple of four on, multiplies A: [64, 16] by B: [16, N] and adds to D: [64, N] in
// float32, in the background. Warp w holds rows 16 w to 16 w + 15 of D, lane l of it at d[4 i] and d[4 i + 1] row l /
// 4, columns 8 i + 2 (l % 4) and the next, and at d[4 i + 2] and d[4 i + 3] the same of row l / 4 + 8.
//
// Tiles in shared memory are slabs of 64 columns, 128 bytes, one slab after the other; the 16-byte chunks of a row are
// permuted by the row's number as the hardware expects it. A tile starts at a multiple of 1024 bytes.
#pragma once

#include <cuda.h>

#include "common/mma.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define ONNXFUSE_HOPPER 1
#else
#define ONNXFUSE_HOPPER 0
#endif

namespace onnxfuse::cuda {

inline constexpr int kWarpgroup = 4 * kWarp, kSlab = 64, kSlabRow = 128;  // threads, columns, bytes

// Bytes from the start of a tile of `rows` rows to chunk `chunk`, of 8 columns, of a row.
__device__ inline uint32_t chunk_offset(int rows, int row, int chunk) {
  return (chunk / 8 * rows + row) * kSlabRow + ((chunk ^ row) & 7) * 16;
}

// What a product is told about a tile at `address`. `slab`: bytes from a slab to the next, which matter only where the
// products' N goes along the rows.
__device__ inline uint64_t descriptor(uint32_t address, uint32_t slab = 16) {
  constexpr uint64_t kPermuted = uint64_t{1} << 62, kEightRows = uint64_t{8 * kSlabRow / 16} << 32;
  return kPermuted | kEightRows | static_cast<uint64_t>(slab / 16) << 16 | (address & 0x3ffff) / 16;
}

// A barrier in shared memory that completes a phase when all its threads have arrived.
__device__ inline void make_barrier(uint64_t* barrier, int threads) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(threads) : "memory");
}
__device__ inline void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// Waits for the end of a phase of this parity; that before the first one counts as of parity 1 and over.
__device__ inline void wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}
// Barriers between all of `threads` threads; who only arrives does not wait for the others.
__device__ inline void sync_threads(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
__device__ inline void arrive_threads(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

#if ONNXFUSE_HOPPER

// Lets products see what this thread has stored or copied to shared memory.
__device__ inline void publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Lets the copy engine and the other blocks of the cluster see the barriers that this thread has made.
__device__ inline void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// A phase of the barrier then waits for so many bytes of the copy engine, too.
__device__ inline void expect_bytes(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Copies the slab of a tile that starts at `row` and `column`.
__device__ inline void copy_slab(uint32_t to, const CUtensorMap& map, int column, int row, int head, int batch,
                                 uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(head), "r"(batch), "r"(shared_address(barrier))
      : "memory");
}

// The same by a map of rows in groups: from the first member of `group` on.
__device__ inline void copy_slab_of_groups(uint32_t to, const CUtensorMap& map, int column, int group, int head,
                                           int batch, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5, %6}], "
      "[%7];" ::"r"(to),
      "l"(&map), "r"(column), "r"(0), "r"(group), "r"(head), "r"(batch), "r"(shared_address(barrier))
      : "memory");
}

// As copy_slab, to the same place in every block of the cluster whose bit is set in `blocks`; its barrier counts the
// bytes.
__device__ inline void copy_slab_to_all(uint32_t to, const CUtensorMap& map, int column, int row, uint16_t blocks,
                                        uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, "
      "%3, %4, %4}], [%5], %6;" ::"r"(to),
      "l"(&map), "r"(column), "r"(row), "r"(0), "r"(shared_address(barrier)), "h"(blocks)
      : "memory");
}

// Has the second-level cache fetch a slab, so that a copy later on finds it there. What it reads may change until then.
__device__ inline void prefetch_slab(const CUtensorMap& map, int column, int row) {
  asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global.tile [%0, {%1, %2, %3, %3}];" ::"l"(&map), "r"(column),
               "r"(row), "r"(0)
               : "memory");
}

// Has a slab written back; `commit_stores` begins what the thread has asked for so far, and `wait_for_stores` waits
// until its shared memory has been read.
__device__ inline void store_slab(const CUtensorMap& map, int column, int row, int head, int batch, uint32_t from) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%1, %2, %3, %4}], [%5];" ::"l"(&map),
               "r"(column), "r"(row), "r"(head), "r"(batch), "r"(from)
               : "memory");
}
__device__ inline void store_slab_of_groups(const CUtensorMap& map, int column, int group, int head, int batch,
                                            uint32_t from) {
  asm volatile("cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%0, {%1, %2, %3, %4, %5}], [%6];" ::"l"(&map),
               "r"(column), "r"(0), "r"(group), "r"(head), "r"(batch), "r"(from)
               : "memory");
}
__device__ inline void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
__device__ inline void wait_for_stores() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// Arrives at the barrier that a block of the cluster has in this one's place.
__device__ inline void arrive_in(int block, uint64_t* barrier) {
  asm volatile(
      "{ .reg .u32 place; mapa.shared::cluster.u32 place, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [place]; }" ::"r"(shared_address(barrier)),
      "r"(block)
      : "memory");
}

// Registers of each thread of a warpgroup from here on.
template <int kCount>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

// Before the first of some products: what was done to their registers comes first.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ inline void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from using results before the wait above it.
template <int kCount>
__device__ inline void hold(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define ONNXFUSE_SUMS_32                                                                                  \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define ONNXFUSE_SUMS_48                                                                                  \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "  \
  "%42, %43, %44, %45, %46, %47}"
#define ONNXFUSE_SUMS_56                                                                                 \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "     \
  "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, " \
  "%41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55}"
#define ONNXFUSE_SUMS_64                                                                                  \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "  \
  "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "  \
  "%62, %63}"
#define ONNXFUSE_SUMS_96                                                                                 \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "     \
  "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, " \
  "%41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, " \
  "%61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, " \
  "%81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}"
#define ONNXFUSE_SUMS_128                                                                                  \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "  \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "   \
  "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "   \
  "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "   \
  "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, " \
  "%102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, " \
  "%119, %120, %121, %122, %123, %124, %125, %126, %127}"
#define ONNXFUSE_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define ONNXFUSE_16(i) ONNXFUSE_4(i), ONNXFUSE_4(i + 4), ONNXFUSE_4(i + 8), ONNXFUSE_4(i + 12)
#define ONNXFUSE_32(i) ONNXFUSE_16(i), ONNXFUSE_16(i + 16)
#define ONNXFUSE_48(i) ONNXFUSE_32(i), ONNXFUSE_16(i + 32)
#define ONNXFUSE_8(i) ONNXFUSE_4(i), ONNXFUSE_4(i + 4)
#define ONNXFUSE_56(i) ONNXFUSE_48(i), ONNXFUSE_8(i + 48)
#define ONNXFUSE_64(i) ONNXFUSE_32(i), ONNXFUSE_32(i + 32)
#define ONNXFUSE_96(i) ONNXFUSE_64(i), ONNXFUSE_32(i + 64)
#define ONNXFUSE_128(i) ONNXFUSE_64(i), ONNXFUSE_64(i + 64)

// d += a b, or a b if not `adds`.
template <typename T, int kN>
struct Warpgroup;

// i0 to i5 are the numbers of the operands behind the sums.
#define ONNXFUSE_WARPGROUP(T, TYPE, N, COUNT, i0, i1, i2, i3, i4, i5)                                        \
  template <>                                                                                                \
  struct Warpgroup<T, N> {                                                                                   \
    /* a: [64, 16] and b: [N, 16], both by rows of K */                                                      \
    static __device__ void multiply_rows(float (&d)[COUNT], uint64_t a, uint64_t b, int adds) {              \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i2                                                  \
                   ", 0;\n"                                                                                  \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " " ONNXFUSE_SUMS_##COUNT \
                   ", %" #i0 ", %" #i1 ", p, 1, 1, 0, 0;\n}"                                                 \
                   : ONNXFUSE_##COUNT(0)                                                                     \
                   : "l"(a), "l"(b), "r"(adds));                                                             \
    }                                                                                                        \
    /* a: [64, 16], b: [16, N] by rows of N */                                                               \
    static __device__ void multiply(float (&d)[COUNT], uint64_t a, uint64_t b, int adds) {                   \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i2                                                  \
                   ", 0;\n"                                                                                  \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " " ONNXFUSE_SUMS_##COUNT \
                   ", %" #i0 ", %" #i1 ", p, 1, 1, 0, 1;\n}"                                                 \
                   : ONNXFUSE_##COUNT(0)                                                                     \
                   : "l"(a), "l"(b), "r"(adds));                                                             \
    }                                                                                                        \
    /* a: [64, 16] in registers, as mma.cuh has it */                                                        \
    static __device__ void multiply(float (&d)[COUNT], const uint32_t (&a)[4], uint64_t b, int adds) {       \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i5                                                  \
                   ", 0;\n"                                                                                  \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " " ONNXFUSE_SUMS_##COUNT \
                   ", {%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4 ", p, 1, 1, 1;\n}"                    \
                   : ONNXFUSE_##COUNT(0)                                                                     \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds));                         \
    }                                                                                                        \
  }

ONNXFUSE_WARPGROUP(Half, "f16", 64, 32, 32, 33, 34, 35, 36, 37);
ONNXFUSE_WARPGROUP(BFloat16, "bf16", 64, 32, 32, 33, 34, 35, 36, 37);
ONNXFUSE_WARPGROUP(Half, "f16", 96, 48, 48, 49, 50, 51, 52, 53);
ONNXFUSE_WARPGROUP(BFloat16, "bf16", 96, 48, 48, 49, 50, 51, 52, 53);
ONNXFUSE_WARPGROUP(Half, "f16", 112, 56, 56, 57, 58, 59, 60, 61);
ONNXFUSE_WARPGROUP(BFloat16, "bf16", 112, 56, 56, 57, 58, 59, 60, 61);
ONNXFUSE_WARPGROUP(Half, "f16", 128, 64, 64, 65, 66, 67, 68, 69);
ONNXFUSE_WARPGROUP(BFloat16, "bf16", 128, 64, 64, 65, 66, 67, 68, 69);
ONNXFUSE_WARPGROUP(Half, "f16", 192, 96, 96, 97, 98, 99, 100, 101);
ONNXFUSE_WARPGROUP(BFloat16, "bf16", 192, 96, 96, 97, 98, 99, 100, 101);
ONNXFUSE_WARPGROUP(Half, "f16", 256, 128, 128, 129, 130, 131, 132, 133);
ONNXFUSE_WARPGROUP(BFloat16, "bf16", 256, 128, 128, 129, 130, 131, 132, 133);

#undef ONNXFUSE_WARPGROUP
#endif  // ONNXFUSE_HOPPER

}  // namespace onnxfuse::cuda
