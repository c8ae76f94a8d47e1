// Products of many rows of 16-bit numbers on tensor cores.
//
// A block owns 128 rows and 128 columns, or 64 columns of each of two weights, whose sums then meet in one thread; each
// of its eight warps 64 x 32. Slices of 64 of K pass through shared memory, kStages - 1 of them on their way. K and N
// are multiples of 8.
#pragma once

#include "common/mma.cuh"
#include "gated_mlp/products.cuh"

namespace onnxfuse::mlp::cuda {

inline constexpr int kManyRows = 128, kManyColumns = 128, kManySlice = 64, kManyThreads = 256, kStages = 3;
inline constexpr size_t kManyBytes = sizeof(uint16_t) * kStages * kManySlice * (kManyRows + kManyColumns);

// An element of a tile in shared memory, whose 16-byte chunks are permuted so that eight rows of one chunk lie in
// different banks.
template <int kWidth, typename T>
__device__ inline T* chunk_of(T* tile, int row, int chunk) {
  return tile + row * kWidth + (chunk ^ (row & 7)) * 8;
}

template <typename T, bool kGated>
__global__ void __launch_bounds__(kManyThreads) products_cuda_many_rows(Product<T, T, T> p) {
  using namespace onnxfuse::cuda;
  constexpr int kOwnColumns = kGated ? kManyColumns / 2 : kManyColumns;  // of the result
  constexpr int kAChunks = kManySlice / 8, kBChunks = kManyColumns / 8;
  extern __shared__ __align__(128) unsigned char bytes[];
  T* const a_tiles = reinterpret_cast<T*>(bytes);
  T* const b_tiles = a_tiles + kStages * kManyRows * kManySlice;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kManyRows;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kOwnColumns;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warp_row = warp % 2 * 64, warp_column = warp / 2;

  const auto fetch = [&](int64_t slice, int stage) {
    T* const a = a_tiles + stage * kManyRows * kManySlice;
    T* const b = b_tiles + stage * kManySlice * kManyColumns;
#pragma unroll
    for (int i = threadIdx.x; i < kManyRows * kAChunks; i += kManyThreads) {
      const int r = i / kAChunks, chunk = i % kAChunks;
      const int64_t m = row + r, k = slice * kManySlice + chunk * 8;
      const bool exists = m < p.rows && k < p.depth;
      copy_async(chunk_of<kManySlice>(a, r, chunk), exists ? p.a + m * p.depth + k : p.a, exists);
    }
#pragma unroll
    for (int i = threadIdx.x; i < kManySlice * kBChunks; i += kManyThreads) {
      const int r = i / kBChunks, chunk = i % kBChunks;
      const bool second = kGated && chunk >= kBChunks / 2;
      const int64_t k = slice * kManySlice + r, n = column + (second ? chunk - kBChunks / 2 : chunk) * 8;
      const bool exists = k < p.depth && n < p.columns;
      const Matrix<T>& matrix = second ? p.second : p.weight;
      copy_async(chunk_of<kManyColumns>(b, r, chunk), exists ? matrix.at(k, n) : p.weight.data, exists);
    }
  };

  float sums[4][4][4] = {};  // [rows / 16][columns / 8][of a lane]
  const int64_t slices = divide_up(p.depth, kManySlice);
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    if (stage < slices) fetch(stage, stage);
    commit_copies();
  }
  for (int64_t slice = 0; slice < slices; ++slice) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // the slice is there for all, and the one before has been used by all
    if (slice + kStages - 1 < slices) fetch(slice + kStages - 1, static_cast<int>((slice + kStages - 1) % kStages));
    commit_copies();
    T* const a = a_tiles + slice % kStages * kManyRows * kManySlice;
    T* const b = b_tiles + slice % kStages * kManySlice * kManyColumns;
#pragma unroll
    for (int k = 0; k < kManySlice / 16; ++k) {
      uint32_t left[4][4], right[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        load_matrices(left[i], chunk_of<kManySlice>(a, warp_row + i * 16 + lane % 16, 2 * k + lane / 16));
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        // Of two weights a warp takes 16 columns each.
        const int chunk = kGated ? warp_column * 2 + j * kBChunks / 2 : warp_column * 4 + j * 2;
        load_matrices_transposed(right[j], chunk_of<kManyColumns>(b, k * 16 + lane % 16, chunk + lane / 16));
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          multiply_add<T>(sums[i][2 * j], left[i], right[j][0], right[j][1]);
          multiply_add<T>(sums[i][2 * j + 1], left[i], right[j][2], right[j][3]);
        }
      }
    }
  }
  wait_for_copies<0>();

  constexpr int kOwnTiles = kGated ? 2 : 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t m = row + warp_row + i * 16 + lane / 4 + 8 * half;
#pragma unroll
      for (int j = 0; j < kOwnTiles; ++j) {
        const int64_t n = column + warp_column * kOwnTiles * 8 + j * 8 + lane % 4 * 2;
        if (m >= p.rows || n >= p.columns) continue;
        const float (&first)[4] = sums[i][j];
        const float (&second)[4] = sums[i][kGated ? j + 2 : j];
        *reinterpret_cast<uint32_t*>(p.out + m * p.columns + n) =
            pack<T>(finish<kGated>(p, first[2 * half], second[2 * half], n),
                    finish<kGated>(p, first[2 * half + 1], second[2 * half + 1], n + 1));
      }
    }
  }
}

}  // namespace onnxfuse::mlp::cuda
