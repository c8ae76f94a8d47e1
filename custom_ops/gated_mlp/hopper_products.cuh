// Products of many rows of 16-bit numbers on compute capability 9.0: warpgroup products, fed by the copy engine.
//
// A cluster of two blocks, one below the other, works on one tile after the other: 128 rows and kColumns columns each,
// of a weight or of two weights whose sums then meet in one thread. Their first warpgroup has slices of 64 of K copied:
// a block its own rows, and half of the weights for both, which are read only once so. The other two warpgroups of a
// block own 64 rows each; the sums stay in registers. Results pass through shared memory, 16 rows at a time, to be
// written in whole vectors.
//
// Tiles of the same columns are worked on at once, as far as kHopperGroup clusters of rows: weights are read from
// memory once, and the rows stay in the second-level cache.
//
// Limit: the tensor cores, 2 M N K flops a weight. They keep an H200 at its limit of power, where they do 700 to 780
// TFLOP/s with random numbers, whoever feeds them.
#pragma once

#include "common/cluster.cuh"
#include "common/early_start.cuh"
#include "common/hopper.cuh"
#include "gated_mlp/hopper_products.h"
#include "gated_mlp/products.cuh"

namespace onnxfuse::mlp::cuda {

inline constexpr int kHopperRows = 128, kHopperSlice = 64, kHopperBlocks = 2, kHopperGroup = 8;
inline constexpr int kHopperThreads = 3 * onnxfuse::cuda::kWarpgroup;

// Weights that share A, one after the other, or two whose products become one.
template <typename T>
struct HopperProducts {
  CUtensorMap a, weights[kMostWeights];
  const T* bias[kMostWeights];
  T* out[kMostWeights];
  int columns[kMostWeights];
  int ends[kMostWeights];  // of their tiles, counted through all weights
  int rows, depth, pairs, tiles;
};

template <int kColumns, bool kGated>
struct HopperShape {
  static constexpr int kSlabs = (kColumns + onnxfuse::cuda::kSlab - 1) / onnxfuse::cuda::kSlab;  // of a weight
  static constexpr int kWeights = kGated ? 2 : 1;
  static constexpr int kRowsBytes = kHopperRows * onnxfuse::cuda::kSlabRow;
  static constexpr int kSlabBytes = kHopperSlice * onnxfuse::cuda::kSlabRow;
  static constexpr int kBytes = kRowsBytes + kWeights * kSlabs * kSlabBytes;  // of a stage
  // Of a warp's results: 16 rows of a slab, 16 bytes apart so that eight of them lie in different banks.
  static constexpr int kOutRow = onnxfuse::cuda::kSlabRow + 16, kOutBytes = 16 * kOutRow;
  static constexpr int kOut = 8 * kOutBytes, kAlign = 1024;
  static constexpr int kStages = (226 * 1024 - kOut - kAlign) / kBytes;
  static constexpr int kAll = kStages * kBytes + kOut + kAlign;
};

// In float32, but for the exponential function and the quotient, which are a few units of its last place off.
template <Activation kActivation>
__device__ inline float quick_activate(float x) {
  if constexpr (kActivation == Activation::kSilu) return __fdividef(x, 1.0f + __expf(-x));
  return activate(kActivation, x);
}

template <typename T, int kColumns, bool kGated, Activation kActivation>
__global__ void __launch_bounds__(kHopperThreads, 1) products_cuda_hopper(const __grid_constant__ HopperProducts<T> p) {
#if ONNXFUSE_HOPPER
  using namespace onnxfuse::cuda;
  using Shape = HopperShape<kColumns, kGated>;
  constexpr int kStages = Shape::kStages, kConsumerWarps = 8, kChunks = kColumns / 8;
  extern __shared__ unsigned char bytes[];
  __shared__ uint64_t full[kStages], empty[kStages];
  const uint32_t memory = (shared_address(bytes) + 1023) / 1024 * 1024;
  const auto rows_tile = [&](int stage) { return memory + stage * Shape::kBytes; };
  const auto weights_tile = [&](int stage) { return rows_tile(stage) + Shape::kRowsBytes; };
  const int rank = cluster_rank();
  let_next_start();
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      make_barrier(&full[stage], 1);
      make_barrier(&empty[stage], kConsumerWarps * kHopperBlocks);
    }
    publish_barriers();
  }
  __syncthreads();
  arrive_at_cluster();

  const int slices = (p.depth + kHopperSlice - 1) / kHopperSlice, units = p.pairs * p.tiles;
  const int first = static_cast<int>(blockIdx.x) / kHopperBlocks, step = static_cast<int>(gridDim.x) / kHopperBlocks;
  struct Place {
    int row, weight, column;
  };
  const auto place_of = [&](int unit) {
    const int of_group = kHopperGroup * p.tiles, group = unit / of_group, within = unit - group * of_group;
    const int width = min(kHopperGroup, p.pairs - group * kHopperGroup);
    const int tile = within / width, pair = group * kHopperGroup + within - tile * width;
    const int weight = kGated ? 0 : (tile >= p.ends[0]) + (tile >= p.ends[1]);
    const int begin = weight == 0 ? 0 : p.ends[weight - 1];
    return Place{(pair * kHopperBlocks + rank) * kHopperRows, weight, (tile - begin) * kColumns};
  };
  // Calls copy(map, column, row, bytes from the start of the tile) for the block's half of a slice of the weights.
  const auto each_slab = [&](const Place& place, int slice, const auto& copy) {
    constexpr int kOwn = kHopperSlice / kHopperBlocks;
#pragma unroll
    for (int w = 0; w < Shape::kWeights; ++w) {
#pragma unroll
      for (int slab = 0; slab < Shape::kSlabs; ++slab) {
        copy(p.weights[kGated ? w : place.weight], place.column + slab * kSlab, slice * kHopperSlice + rank * kOwn,
             (w * Shape::kSlabs + slab) * Shape::kSlabBytes + rank * kOwn * kSlabRow);
      }
    }
  };
  if (threadIdx.x == 0) {
    const Place place = place_of(first);
    for (int slice = 0; slice < min(kStages, slices); ++slice) {
      each_slab(place, slice,
                [](const CUtensorMap& map, int column, int row, int) { prefetch_slab(map, column, row); });
    }
  }
  wait_for_cluster();
  wait_for_previous();

  if (threadIdx.x < kWarpgroup) {
    give_registers<40>();
    if (threadIdx.x == 0) {
      constexpr uint16_t kBoth = (1 << kHopperBlocks) - 1;
      int stage = 0;
      uint32_t parity = 1;
      for (int unit = first; unit < units; unit += step) {
        const Place place = place_of(unit);
        for (int slice = 0; slice < slices; ++slice) {
          wait(&empty[stage], parity);
          arrive_expecting(&full[stage], Shape::kBytes);
          copy_slab(rows_tile(stage), p.a, slice * kHopperSlice, place.row, 0, 0, &full[stage]);
          each_slab(place, slice, [&](const CUtensorMap& map, int column, int row, int offset) {
            copy_slab_to_all(weights_tile(stage) + offset, map, column, row, kBoth, &full[stage]);
          });
          if (++stage == kStages) {
            stage = 0;
            parity ^= 1;
          }
        }
      }
    }
    __syncwarp();
  } else {
    take_registers<232>();
    const int team = threadIdx.x / kWarpgroup - 1, warp = threadIdx.x % kWarpgroup / kWarp, lane = threadIdx.x % kWarp;
    unsigned char* const out =
        bytes + (memory - shared_address(bytes)) + kStages * Shape::kBytes + (team * 4 + warp) * Shape::kOutBytes;
    const auto release = [&](int stage) {
      __syncwarp();
      if (lane < kHopperBlocks) arrive_in(lane, &empty[stage]);
    };
    int stage = 0;
    uint32_t parity = 0;
    for (int unit = first; unit < units; unit += step) {
      float sums[Shape::kWeights * kColumns / 2];  // those of the second weight behind those of the first
      int last = 0;
      for (int slice = 0; slice < slices; ++slice) {
        wait(&full[stage], parity);
        begin_products();
        const uint32_t rows_at = rows_tile(stage) + team * 64 * kSlabRow, weights_at = weights_tile(stage);
#pragma unroll
        for (int k = 0; k < kHopperSlice / 16; ++k) {
          const uint64_t rows = descriptor(rows_at + k * 32);
          const uint64_t weights = descriptor(weights_at + k * 16 * kSlabRow, Shape::kSlabBytes);
          const bool adds = slice > 0 || k > 0;
          if constexpr (kColumns % kSlab == 0) {
            Warpgroup<T, Shape::kWeights * kColumns>::multiply(sums, rows, weights, adds);
          } else {
            auto& halves = reinterpret_cast<float (&)[2][kColumns / 2]>(sums);
            Warpgroup<T, kColumns>::multiply(halves[0], rows, weights, adds);
            Warpgroup<T, kColumns>::multiply(halves[1], rows, weights + Shape::kSlabs * Shape::kSlabBytes / 16, adds);
          }
        }
        commit_products();
        if (slice > 0) {
          wait_for_products<1>();
          release(last);
        }
        last = stage;
        if (++stage == kStages) {
          stage = 0;
          parity ^= 1;
        }
      }
      wait_for_products<0>();
      hold(sums);
      release(last);

      const Place place = place_of(unit);
      const int own = place.row + team * 64 + warp * 16, columns = p.columns[place.weight];
      const T *const bias = p.bias[place.weight], *const second_bias = kGated ? p.bias[1] : nullptr;
      T* const to = p.out[place.weight];
#pragma unroll
      for (int slab = 0; slab < Shape::kSlabs; ++slab) {
        const int start = place.column + slab * kSlab;
        __syncwarp();
#pragma unroll
        for (int j = slab * 8; j < min(slab * 8 + 8, kChunks); ++j) {
          const int n = place.column + j * 8 + lane % 4 * 2;
          float x[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) x[i] = sums[4 * j + i];
          if (bias != nullptr && n < columns) {
#pragma unroll
            for (int i = 0; i < 4; ++i) x[i] += widen(bias[n + i % 2]);
          }
          if constexpr (kGated) {
            float y[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) y[i] = sums[kColumns / 2 + 4 * j + i];
            if (second_bias != nullptr && n < columns) {
#pragma unroll
              for (int i = 0; i < 4; ++i) y[i] += widen(second_bias[n + i % 2]);
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) x[i] = quick_activate<kActivation>(x[i]) * y[i];
          }
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            *reinterpret_cast<uint32_t*>(out + (lane / 4 + 8 * half) * Shape::kOutRow + j % 8 * 16 + lane % 4 * 4) =
                pack<T>(x[2 * half], x[2 * half + 1]);
          }
        }
        __syncwarp();
#pragma unroll
        for (int i = lane; i < 16 * 8; i += kWarp) {
          const int r = i / 8, chunk = i % 8;
          if (slab * 8 + chunk >= kChunks || own + r >= p.rows || start + chunk * 8 >= columns) continue;
          *reinterpret_cast<uint4*>(to + static_cast<int64_t>(own + r) * columns + start + chunk * 8) =
              *reinterpret_cast<const uint4*>(out + r * Shape::kOutRow + chunk * 16);
        }
      }
    }
  }
  // What a block copies and says to the other comes to one that is still there.
  arrive_at_cluster();
  wait_for_cluster();
#endif
}

}  // namespace onnxfuse::mlp::cuda
