// Tiles of 16 keys, and how a lane loads its vectors of a row.
#pragma once

#include <utility>

#include "attention/arguments.cuh"
#include "common/early_start.cuh"

namespace onnxfuse::attention::cuda {

inline constexpr int kTileKeys = 16;

// Tile n of a head: those of the new keys come first, then those of the past.
struct KeyTile {
  bool fresh;
  int at, count, key;  // its first row, there; its rows; its first key

  __device__ KeyTile(int n, int fresh_tiles, int new_keys, int past) {
    fresh = n < fresh_tiles;
    at = (fresh ? n : n - fresh_tiles) * kTileKeys;
    count = min((fresh ? new_keys : past) - at, kTileKeys);
    key = fresh ? past + at : at;
  }

  // The row of place i of the tile; places beyond its last row have that one.
  __device__ int row(int i) const { return at + min(i, count - 1); }
};

template <int kStep, int kCount, int... kIndices>
__device__ inline void load_whole(const char* row, uint4 (&vectors)[kCount], std::integer_sequence<int, kIndices...>) {
  ((vectors[kIndices] = onnxfuse::cuda::load_once<kStep * kIndices * 16>(row)), ...);
}

// Vectors `first`, first + kStep and so on of a row of `size` elements of 16 bits; beyond the last one, that one.
template <bool kWhole, int kStep, int kCount>
__device__ inline void load_vectors(const char* row, int first, int size, uint4 (&vectors)[kCount]) {
  if constexpr (kWhole) {
    load_whole<kStep>(row + first * 16, vectors, std::make_integer_sequence<int, kCount>{});
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      vectors[i] = onnxfuse::cuda::load_once(row + min(first + kStep * i, size / 8 - 1) * 16);
    }
  }
}

}  // namespace onnxfuse::attention::cuda
