// Attention for many rows of 16-bit numbers on compute capability 9.0: warpgroup products, fed by warps of their own.
//
// A block works on one item after the other: 128 rows of one key-value head, all the keys that any of them sees. Its
// first warpgroup copies: the rows of q, then tiles of kKeys keys and values, two of each in shared memory, and which
// keys of a tile the padding mask shows, a bit each. The copy engine takes whole tiles; threads copy those that hold
// the end of the past or of the keys, with zeros behind it: a shared cache may hold anything there. The engine moves q
// and y, too, where a warp's rows are whole groups. The other two warpgroups own 64 rows each: scores and sums stay in
// registers, and the weights multiply the values from there. While the tensor cores multiply a tile's weights by its
// values and the next keys by q, the weights of the next tile are computed; the two warpgroups take turns, so that one
// computes weights while the other multiplies. Tiles that no row of an item sees are skipped; only tiles on the border
// of what is visible look at single keys. If asked to, each item writes some of its tiles to present. Each block looks
// for the length of a shared cache in the mask unless it is told.
//
// Shared memory, head size 128: q of two items 2 x 32 KiB, keys and values 2 x 64 KiB; q's place takes the results on
// their way out. Head sizes are multiples of 8 up to kSize; the features up to kSize are zeros. Weights are rounded to
// T before they multiply values.
//
// Limit: the tensor cores, 4 S L D flops a head, half of that under a causal mask. On an H200, which multiplies large
// float16 matrices at 700 TFLOP/s, 32 heads of 128, causal: 415 TFLOP/s at 2048 rows where present is written, too;
// 525 at 8192 rows and 537 without the causal mask at 2048 where it is not.
//
// Sources: Dao 2023, FlashAttention-2, arXiv:2307.08691; Shah et al. 2024, FlashAttention-3, arXiv:2407.08608.
#pragma once

#include "attention/hopper_items.cuh"
#include "attention/lane_rows.cuh"
#include "attention/past_search.cuh"
#include "common/early_start.cuh"
#include "common/hopper.cuh"
#include "common/tensor_map.h"

namespace onnxfuse::attention::cuda {

inline constexpr int kHopperThreads = 3 * onnxfuse::cuda::kWarpgroup, kHopperStages = 2;

template <int kSize>
inline constexpr int kHopperKeys = kSize <= 128 ? 128 : 64;

// Of keys or values.
struct CacheMaps {
  CUtensorMap past, fresh, present;
};

struct Maps {
  CacheMaps keys, values;
  CUtensorMap q, y;  // in tiles of the rows of an item, and of a warp
};

template <typename T, int kSize>
struct HopperMemory {
  static constexpr int kSlabs = (kSize + onnxfuse::cuda::kSlab - 1) / onnxfuse::cuda::kSlab;
  static constexpr int kRowsBytes = kHopperRows * kSlabs * onnxfuse::cuda::kSlabRow;
  static constexpr int kKeysBytes = kHopperKeys<kSize> * kSlabs * onnxfuse::cuda::kSlabRow;
  static constexpr int kRowsStages = kSize <= 128 ? 2 : 1;
  // One KiB to start at a multiple of it.
  static constexpr int kBytes = kRowsStages * kRowsBytes + 2 * kHopperStages * kKeysBytes + 1024;
};

// kPlain: has_plain_scores.
template <typename T, int kSize, bool kPlain>
__global__ void __launch_bounds__(kHopperThreads, 1)
    attention_cuda_hopper_rows(Arguments<T> a, Items items, const __grid_constant__ Maps maps) {
#if ONNXFUSE_HOPPER
  using namespace onnxfuse::cuda;
  using Memory = HopperMemory<T, kSize>;
  constexpr int kKeys = kHopperKeys<kSize>, kChunks = kSize / 8, kCopiers = kWarpgroup;
  constexpr int kRowsStages = Memory::kRowsStages;
  constexpr int kColumns = kChunks <= 8 ? 8 : kChunks <= 16 ? 16 : 32;  // threads of a row, which have a chunk each
  constexpr uint32_t kRowsSlab = kHopperRows * kSlabRow, kKeysSlab = kKeys * kSlabRow;
  extern __shared__ unsigned char bytes[];
  __shared__ uint64_t keys_full[kHopperStages], keys_empty[kHopperStages], values_full[kHopperStages],
      values_empty[kHopperStages], rows_full[kRowsStages], rows_empty[kRowsStages];
  __shared__ uint32_t shown[kHopperStages][kKeys / 32];
  unsigned char* const memory = bytes + (1024 - shared_address(bytes) % 1024) % 1024;
  const auto rows_tile = [&](int stage) { return memory + stage * Memory::kRowsBytes; };
  const auto key_tile = [&](int stage) { return rows_tile(kRowsStages) + 2 * stage * Memory::kKeysBytes; };
  const auto value_tile = [&](int stage) { return key_tile(stage) + Memory::kKeysBytes; };
  let_next_start();
  if (threadIdx.x == 0) {
    constexpr int kCopierWarps = kCopiers / kWarp, kConsumerWarps = 2 * kWarpgroup / kWarp;
    for (int stage = 0; stage < kHopperStages; ++stage) {
      make_barrier(&keys_full[stage], kCopierWarps);
      make_barrier(&values_full[stage], kCopierWarps);
      make_barrier(&keys_empty[stage], kConsumerWarps);
      make_barrier(&values_empty[stage], kConsumerWarps);
    }
    for (int stage = 0; stage < kRowsStages; ++stage) {
      make_barrier(&rows_full[stage], kCopierWarps);
      make_barrier(&rows_empty[stage], kConsumerWarps);
    }
    publish_barriers();
  }
  __syncthreads();
  wait_for_previous();
  const Problem<T>& p = a.problem;
  using Search = PastSearch<kHopperThreads / kWarp, 8, 1>;
  __shared__ typename Search::Mailbox mailbox;
  const int past = a.room > 0 && a.past == nullptr ? Search(&mailbox).find_alone(a) : past_of(a);
  const int keys = past + static_cast<int>(p.fresh);
  const int64_t grid = gridDim.x;
  // Blocks take the items there and back, so that who had the longest gets the shortest of the next round.
  const auto item_of = [&](int64_t round) {
    return round * grid + (round % 2 == 0 ? blockIdx.x : grid - 1 - blockIdx.x);
  };

  if (threadIdx.x < kCopiers) {
    give_registers<56>();
    const int own = threadIdx.x, warp = own / kWarp, lane = own % kWarp;
    constexpr int kCopy = 5;  // a named barrier
    constexpr int kStep = kCopiers / kColumns;
    const int chunk = own % kColumns, own_row = own / kColumns;
    // Whether all keys of a tile exist and lie together: then the engine copies it.
    const auto is_whole = [&](int start) { return start + kKeys <= past || (start >= past && start + kKeys <= keys); };
    const auto copy_tile = [&](unsigned char* to, const Item<T>& item, const Cache<T>& cache, const CacheMaps& map,
                               int tile, uint64_t* full) {
      const uint32_t to_tile = shared_address(to);
      const int start = tile * kKeys;
      if (is_whole(start)) {
        if (own > 0) return;
        wait_for_stores();
        expect_bytes(full, Memory::kKeysBytes);
        const bool is_past = start < past;
#pragma unroll
        for (int slab = 0; slab < Memory::kSlabs; ++slab) {
          copy_slab(to_tile + slab * kKeysSlab, is_past ? map.past : map.fresh, slab * kSlab,
                    is_past ? start : start - past, item.head, item.b, full);
        }
        return;
      }
      if (own == 0) wait_for_stores();
      sync_threads(kCopy, kCopiers);
      const HeadRows<T> rows(cache, past, item.b, item.head);
#pragma unroll 1
      for (int r = own_row; r < kKeys && chunk < kChunks; r += kStep) {
        const bool exists = start + r < keys && chunk * 8 < cache.size;
        const T* const from = exists ? rows.at(start + r) + chunk * 8 : p.q.data;
        copy_async(to_tile + chunk_offset(kKeys, r, chunk), from, exists);
      }
      commit_copies();
      wait_for_copies<0>();
      publish();
    };
    // Writes the tile's rows of present: the engine from shared memory, threads from where they read them.
    const auto write_present = [&](unsigned char* from, const Item<T>& item, const Cache<T>& cache,
                                   const CacheMaps& map, bool moves, int tile, uint64_t* full, uint32_t parity) {
      const int start = tile * kKeys, first = moves ? 0 : past;
      if (cache.present.data == nullptr || start + kKeys <= first) return;
      if (is_whole(start)) {
        if (own > 0) return;
        wait(full, parity);
#pragma unroll
        for (int slab = 0; slab < Memory::kSlabs; ++slab) {
          store_slab(map.present, slab * kSlab, start, item.head, item.b, shared_address(from) + slab * kKeysSlab);
        }
        commit_stores();
        return;
      }
      const HeadRows<T> rows(cache, past, item.b, item.head);
#pragma unroll 1
      for (int j = start + own_row; j < min(start + kKeys, keys) && chunk * 8 < cache.size; j += kStep) {
        if (j < first) continue;
        *reinterpret_cast<uint4*>(row_of(cache.present, item.b, item.head, j) + chunk * 8) =
            *reinterpret_cast<const uint4*>(rows.at(j) + chunk * 8);
      }
    };
    const auto announce = [&](uint64_t* full) {
      __syncwarp();
      if (lane == 0) arrive(full);
    };
    int tiles = 0, items_done = 0;  // of all items so far
    for (int64_t round = 0; round * grid < items.count; ++round) {
      const int64_t index = item_of(round);
      if (index >= items.count) continue;
      const Item<T> item = Item<T>::template of<kKeys>(a, items, static_cast<int>(index), keys, past);
      if (item.begin == item.end) continue;
      const Mask mask = a.mask.of_batch(item.b);
      // Returns whether the mask shows the thread's key of the tile, for announce_keys.
      const auto copy_keys = [&](int tile, int number) {
        const int stage = number % kHopperStages, j = tile * kKeys + own;
        wait(&keys_empty[stage], number / kHopperStages % 2 ^ 1);
        copy_tile(key_tile(stage), item, p.key, maps.keys, tile, &keys_full[stage]);
        return own < kKeys && j < keys && mask.shows_first(j);
      };
      const auto announce_keys = [&](int number, bool is_shown) {
        const int stage = number % kHopperStages;
        const uint32_t bits = __ballot_sync(0xffffffff, is_shown);
        if (lane == 0 && own < kKeys) shown[stage][warp] = bits;
        announce(&keys_full[stage]);
      };
      const bool is_shown = copy_keys(item.begin, tiles);
      const HeadPlace place(p, item.b, item.head, keys);
      const int rows_stage = items_done % kRowsStages;
      wait(&rows_empty[rows_stage], items_done / kRowsStages % 2 ^ 1);
      const uint32_t to_rows = shared_address(rows_tile(rows_stage));
      if (items.whole_groups) {
        if (own == 0) {
          expect_bytes(&rows_full[rows_stage], Memory::kRowsBytes);
#pragma unroll
          for (int slab = 0; slab < Memory::kSlabs; ++slab) {
            copy_slab_of_groups(to_rows + slab * kRowsSlab, maps.q, slab * kSlab, place.query_of(item.first), item.head,
                                item.b, &rows_full[rows_stage]);
          }
        }
      } else {
        RowWalk walk(place, item.first + own_row, kStep);
#pragma unroll 4
        for (int r = own_row; r < kHopperRows && chunk < kChunks; r += kStep, walk.next()) {
          const bool exists = item.first + r < item.rows && chunk * 8 < p.key.size;
          const T* const from = exists ? walk.at(p.q) + chunk * 8 : p.q.data;
          copy_async(to_rows + chunk_offset(kHopperRows, r, chunk), from, exists);
        }
        commit_copies();
      }
      announce_keys(tiles, is_shown);
      wait_for_copies<0>();
      publish();
      announce(&rows_full[rows_stage]);
      const auto writes = [&](int tile) { return a.copies && tile >= item.write_begin && tile < item.write_end; };
      const auto write_values = [&](int tile, int number) {
        const int stage = number % kHopperStages;
        write_present(value_tile(stage), item, p.value, maps.values, a.moves_value, tile, &values_full[stage],
                      number / kHopperStages % 2);
      };
      for (int tile = item.begin; tile < item.end; ++tile, ++tiles) {
        if (tile + 1 < item.end) announce_keys(tiles + 1, copy_keys(tile + 1, tiles + 1));
        const int stage = tiles % kHopperStages, parity = tiles / kHopperStages % 2;
        wait(&values_empty[stage], parity ^ 1);
        copy_tile(value_tile(stage), item, p.value, maps.values, tile, &values_full[stage]);
        announce(&values_full[stage]);
        // What is there by now.
        if (writes(tile)) {
          write_present(key_tile(stage), item, p.key, maps.keys, a.moves_key, tile, &keys_full[stage], parity);
        }
        if (tile > item.begin && writes(tile - 1)) write_values(tile - 1, tiles - 1);
      }
      if (writes(item.end - 1)) write_values(item.end - 1, tiles - 1);
      ++items_done;
    }
    if (own == 0) wait_for_stores();
    return;
  }

  take_registers<224>();
  const int team = threadIdx.x / kWarpgroup - 1, warp = threadIdx.x % kWarpgroup / kWarp, lane = threadIdx.x % kWarp;
  constexpr int kTurn = 1, kTeam = 3;  // named barriers: of a team's turn, and of a team
  if (team == 1) arrive_threads(kTurn, 2 * kWarpgroup);
  const auto release = [&](uint64_t* empty) {
    __syncwarp();
    if (lane == 0) arrive(empty);
  };
  int tiles = 0, items_done = 0;
  for (int64_t round = 0; round * grid < items.count; ++round) {
    const int64_t index = item_of(round);
    if (index >= items.count) continue;
    const Item<T> item = Item<T>::template of<kKeys>(a, items, static_cast<int>(index), keys, past);

    const int rows_stage = items_done % kRowsStages;
    unsigned char* const q = rows_tile(rows_stage);
    const HeadPlace place(p, item.b, item.head, keys);
    const int first = item.first + team * 64, own = first + warp * 16 + lane / 4;
    const SeenByAll seen(p, place, first, 64);
    LaneRows<T, kKeys, kPlain> rows;
    float scores[kKeys / 2], sums[kSize / 2];
    uint32_t weights[kKeys / 16][4];
#pragma unroll
    for (int i = 0; i < kSize / 2; ++i) sums[i] = 0;

    const auto multiply_keys = [&](int stage) {
      const uint32_t rows_at = shared_address(q) + team * 64 * kSlabRow, keys_at = shared_address(key_tile(stage));
#pragma unroll
      for (int k = 0; k < kSize / 16; ++k) {
        const uint32_t slab = k / 4, within = k % 4 * 32;
        Warpgroup<T, kKeys>::multiply_rows(scores, descriptor(rows_at + slab * kRowsSlab + within),
                                           descriptor(keys_at + slab * kKeysSlab + within), k > 0);
      }
      commit_products();
    };
    const auto multiply_values = [&](int stage) {
      const uint32_t values_at = shared_address(value_tile(stage));
#pragma unroll
      for (int k = 0; k < kKeys / 16; ++k) {
        const uint64_t values = descriptor(values_at + k * 16 * kSlabRow, kKeysSlab);
        if constexpr (kSize <= 128) {
          Warpgroup<T, kSize>::multiply(sums, weights[k], values, 1);
        } else {
          static_assert(kSize == 256);
          auto& halves = reinterpret_cast<float (&)[2][64]>(sums);
          Warpgroup<T, 128>::multiply(halves[0], weights[k], values, 1);
          Warpgroup<T, 128>::multiply(halves[1], weights[k], values + 2 * kKeysSlab / 16, 1);
        }
      }
      commit_products();
    };
    // Scores become weights.
    const auto weigh = [&](int tile, int stage) {
      uint32_t bits[kKeys / 32];
#pragma unroll
      for (int w = 0; w < kKeys / 32; ++w) bits[w] = shown[stage][w];
      release(&keys_empty[stage]);
      rows.weigh(a, place, seen, own, tile * kKeys, bits, scores);
    };
    const auto round_weights = [&] {
#pragma unroll
      for (int k = 0; k < kKeys / 16; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) weights[k][i] = pack<T>(scores[8 * k + 2 * i], scores[8 * k + 2 * i + 1]);
      }
    };

    if (item.begin == item.end) {
      for (int i = lane; i < 16 * kChunks; i += kWarp) {
        const int row = first + warp * 16 + i / kChunks, column = i % kChunks * 8;
        if (row >= item.rows || column >= p.value.size) continue;
        const uint32_t both = pack<T>(past < 0 ? NAN : 0.0f, past < 0 ? NAN : 0.0f);
        *reinterpret_cast<uint4*>(place.at(p.y, row) + column) = uint4{both, both, both, both};
      }
      continue;
    }
    wait(&rows_full[rows_stage], items_done / kRowsStages % 2);
    wait(&keys_full[tiles % kHopperStages], tiles / kHopperStages % 2);
    sync_threads(kTurn + team, 2 * kWarpgroup);
    begin_products();
    multiply_keys(tiles % kHopperStages);
    arrive_threads(kTurn + 1 - team, 2 * kWarpgroup);
    wait_for_products<0>();
    hold(scores);
    weigh(item.begin, tiles % kHopperStages);
    round_weights();
    for (int tile = item.begin + 1; tile < item.end; ++tile, ++tiles) {
      const int stage = tiles % kHopperStages, next = (tiles + 1) % kHopperStages;
      wait(&keys_full[next], (tiles + 1) / kHopperStages % 2);
      sync_threads(kTurn + team, 2 * kWarpgroup);
      begin_products();
      multiply_keys(next);
      wait(&values_full[stage], tiles / kHopperStages % 2);
      multiply_values(stage);
      arrive_threads(kTurn + 1 - team, 2 * kWarpgroup);
      wait_for_products<1>();
      hold(scores);
      weigh(tile, next);
      wait_for_products<0>();
      hold(sums);
      release(&values_empty[stage]);
      round_weights();
#pragma unroll
      for (int i = 0; i < kSize / 2; ++i) sums[i] *= rows.less[i / 2 % 2];
    }
    const int stage = tiles % kHopperStages;
    wait(&values_full[stage], tiles / kHopperStages % 2);
    begin_products();
    multiply_values(stage);
    wait_for_products<0>();
    hold(sums);
    release(&values_empty[stage]);
    ++tiles;
    // Through the place of q, of which each warp writes and reads rows of its own.
    sync_threads(kTeam + team, kWarpgroup);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float factor = rows.factor(half);
      const int row = team * 64 + warp * 16 + lane / 4 + 8 * half;
#pragma unroll
      for (int n = 0; n < kChunks; ++n) {
        const uint32_t both = pack<T>(sums[4 * n + 2 * half] * factor, sums[4 * n + 2 * half + 1] * factor);
        *reinterpret_cast<uint32_t*>(q + chunk_offset(kHopperRows, row, n) + lane % 4 * 4) = both;
      }
    }
    const int begin = team * 64 + warp * 16;
    if (items.whole_groups) {
      publish();
      __syncwarp();
      if (lane == 0) {
#pragma unroll
        for (int slab = 0; slab < Memory::kSlabs; ++slab) {
          store_slab_of_groups(maps.y, slab * kSlab, place.query_of(item.first + begin), item.head, item.b,
                               shared_address(q) + slab * kRowsSlab + begin * kSlabRow);
        }
        commit_stores();
        wait_for_stores();
      }
    } else {
      __syncwarp();
      constexpr int kStep = kWarp / kColumns;
      const int chunk = lane % kColumns, own_row = begin + lane / kColumns;
      RowWalk walk(place, item.first + own_row, kStep);
#pragma unroll 4
      for (int r = own_row; r < begin + 16; r += kStep, walk.next()) {
        if (item.first + r >= item.rows || chunk * 8 >= p.value.size) continue;
        *reinterpret_cast<uint4*>(walk.at(p.y) + chunk * 8) =
            *reinterpret_cast<const uint4*>(q + chunk_offset(kHopperRows, r, chunk));
      }
    }
    release(&rows_empty[rows_stage]);
    ++items_done;
  }
  if (team == 0) sync_threads(kTurn, 2 * kWarpgroup);  // the other team's last word
#endif
}

}  // namespace onnxfuse::attention::cuda
