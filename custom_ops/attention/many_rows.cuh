// Attention for many rows, as in a prompt: products on tensor cores, scores never written. For float32, and for 16-bit
// numbers on devices without what hopper_rows.cuh needs.
//
// A block owns 128 rows of one key-value head, each of its four warps 32, so that what a warp reads of a key or value
// serves two products. Keys and values pass through shared memory in tiles, the next on its way while one is used, with
// a bit for each key that the padding mask shows; tiles that no row of the block sees are skipped. Scores, weights and
// sums stay in registers. Head sizes are whole vectors up to kSize; the features up to kSize are zeros. Where rows of
// kSize are longer than 256 bytes a block owns fewer, and tiles are smaller.
//
// Weights are rounded to T before they multiply values. Float32 is rounded to TF32 or, if kSplit, comes as a sum of two
// such numbers, see Factor.
//
// Limit: the tensor cores, 4 S L D flops a head, half of that under a causal mask. On an H200 at 2048 rows, 32 heads of
// 128: 146 TFLOP/s causal and 240 without the mask, where FlashAttention-2 reaches 205 and 333. Float32 waits for what
// feeds them: 58 TFLOP/s causal in TF32, 28 as exact as float32.
//
// Source: Dao 2023, FlashAttention-2, arXiv:2307.08691.
#pragma once

#include "attention/lane_rows.cuh"
#include "common/mma.cuh"

namespace onnxfuse::attention::cuda {

inline constexpr int kManyFeatures = 256;  // of a row, at most

// Of rows of kBytes: tiles of 16 of them that a warp owns, threads and rows of a block, keys of a tile. They fit the 99
// KiB of shared memory of compute capability 8.6.
template <int kBytes>
inline constexpr int kManyTiles = kBytes <= 256 ? 2 : 1;
template <int kBytes>
inline constexpr int kManyThreads = kBytes <= 512 ? 128 : 64;
template <int kBytes>
inline constexpr int kManyRows = kManyThreads<kBytes> / kWarp * 16 * kManyTiles<kBytes>;
template <int kBytes>
inline constexpr int kManyKeys = kBytes <= 256 ? 64 : (kBytes <= 512 ? 32 : 16);
template <int kBytes>
inline constexpr int kManyMemory = (kManyRows<kBytes> + 4 * kManyKeys<kBytes>)*kBytes;

// Rows of kSize elements in shared memory, whose 16-byte chunks are permuted so that eight rows of one chunk lie in
// different banks.
template <typename T, int kSize>
struct Tile {
  T* data;

  __device__ T* at(int row, int chunk) const {
    return data + row * kSize + (chunk ^ (row & 7)) * onnxfuse::cuda::kLanes<T>;
  }
};

// kPlain: has_plain_scores.
template <typename T, int kSize, bool kPlain, bool kSplit>
__global__ void __launch_bounds__(kManyThreads<kSize * sizeof(T)>) attention_cuda_many_rows(Arguments<T> a) {
  using namespace onnxfuse::cuda;
  constexpr int kBytes = kSize * sizeof(T), kThreads = kManyThreads<kBytes>, kKeys = kManyKeys<kBytes>;
  constexpr int kTiles = kManyTiles<kBytes>, kRows = kManyRows<kBytes>, kWords = kWordsOf<kKeys>;
  constexpr int kChunk = kLanes<T>, kChunks = kSize / kChunk;
  extern __shared__ __align__(128) unsigned char bytes[];
  __shared__ uint32_t shown[2][kWords];
  const Problem<T>& p = a.problem;
  const int past = past_of(a), keys = past + static_cast<int>(p.fresh);
  const HeadPlace place(p, blockIdx.z, blockIdx.y, keys);
  // The last rows see the most keys: they go first.
  const int first = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kRows;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;

  const Tile<T, kSize> q{reinterpret_cast<T*>(bytes)};
  const auto key_tile = [&](int stage) { return Tile<T, kSize>{q.data + (kRows + 2 * stage * kKeys) * kSize}; };
  const auto value_tile = [&](int stage) { return Tile<T, kSize>{q.data + (kRows + (2 * stage + 1) * kKeys) * kSize}; };
  // Of every tile a thread copies one chunk of some rows.
  constexpr int kRowStep = kThreads / kChunks;
  const int own_chunk = threadIdx.x % kChunks, own_row = threadIdx.x / kChunks;
  const bool has_key = own_chunk * kChunk < p.key.size, has_value = own_chunk * kChunk < p.value.size;
  for (int r = own_row; r < kRows; r += kRowStep) {
    const bool exists = first + r < place.rows && has_key;
    copy_async(q.at(r, own_chunk), exists ? place.at(p.q, first + r) + own_chunk * kChunk : p.q.data, exists);
  }
  const HeadRows<T> all_keys(p.key, past, place.b, place.head), all_values(p.value, past, place.b, place.head);
  const Mask mask = a.mask.of_batch(place.b);
  // Returns whether the mask shows the thread's key of the tile.
  const auto fetch = [&](int tile, int stage) {
    const auto to_key = key_tile(stage), to_value = value_tile(stage);
#pragma unroll
    for (int r = own_row; r < kKeys; r += kRowStep) {
      const int j = tile * kKeys + r, existing = min(j, keys - 1);
      copy_async(to_key.at(r, own_chunk), has_key ? all_keys.at_once(existing) + own_chunk * kChunk : p.q.data,
                 has_key && j < keys);
      copy_async(to_value.at(r, own_chunk), has_value ? all_values.at_once(existing) + own_chunk * kChunk : p.q.data,
                 has_value && j < keys);
    }
    const int own = static_cast<int>(threadIdx.x), j = tile * kKeys + own;
    return own >= kKeys || (j < keys && mask.shows_first(j));
  };

  // The tiles of keys that any row of the block may see.
  const int low = place.query_of(first), high = place.query_of(min(first + kRows, place.rows) - 1);
  const int window = static_cast<int>(min(p.window, int64_t{0x3fffffff}));
  const int visible_end = p.causal ? max(min(keys, high + place.offset + 1), 0) : keys;
  const int visible_begin = window > 0 ? max(low + place.offset - window + 1, 0) : 0;
  const int first_tile = visible_begin / kKeys, end_tile = past < 0 ? 0 : (visible_end + kKeys - 1) / kKeys;

  const int own = first + warp * 16 * kTiles;  // the first row of the warp
  const SeenByAll seen(p, place, own, 16 * kTiles);
  LaneRows<T, kKeys, kPlain> rows[kTiles];
  float sums[kTiles][kSize / 8][4] = {};
  bool is_shown = first_tile < end_tile && fetch(first_tile, 0);
  commit_copies();
  for (int tile = first_tile; tile < end_tile; ++tile) {
    const int stage = (tile - first_tile) % 2;
    const uint32_t own_bits = __ballot_sync(0xffffffff, is_shown);
    if (lane == 0 && warp < kWords) shown[stage][warp] = own_bits;
    if (tile + 1 < end_tile) is_shown = fetch(tile + 1, 1 - stage);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();

    float scores[kTiles][kKeys / 2] = {};
    const auto key = key_tile(stage);
#pragma unroll
    for (int k = 0; k < kChunks / 2; ++k) {
      Factor<T, 4, kSplit> rows_of_q[kTiles];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        uint32_t r[4];
        load_matrices(r, q.at((warp * kTiles + t) * 16 + lane % 16, 2 * k + lane / 16));
        rows_of_q[t].set(r);
      }
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t r[4];
        load_matrices(r, key.at(n * 16 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
        Factor<T, 2, kSplit> keys_of_tile[2];
        keys_of_tile[0].set(r), keys_of_tile[1].set(r + 2);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          auto& both = reinterpret_cast<float (&)[2][4]>(scores[t][8 * n]);
          multiply_add(both[0], rows_of_q[t], keys_of_tile[0]);
          multiply_add(both[1], rows_of_q[t], keys_of_tile[1]);
        }
      }
    }

    uint32_t bits[kWords];
#pragma unroll
    for (int w = 0; w < kWords; ++w) bits[w] = shown[stage][w];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      rows[t].weigh(a, place, seen, own + t * 16 + lane / 4, tile * kKeys, bits, scores[t]);
#pragma unroll
      for (int n = 0; n < kSize / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[t][n][c] *= rows[t].less[c / 2];
      }
    }

    const auto value = value_tile(stage);
    constexpr int kStep = 4 * kChunk / 2;  // keys that one product adds up: 16, or 8 of float32
#pragma unroll
    for (int k = 0; k < kKeys / kStep; ++k) {
      Factor<T, 4, kSplit> weights[kTiles];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) weights[t].set_results(&scores[t][k * kStep / 2]);
#pragma unroll
      for (int n = 0; n < kSize / 16; ++n) {
        Factor<T, 2, kSplit> columns[2];
        if constexpr (sizeof(T) == 2) {
          uint32_t r[4];
          load_matrices_transposed(r, value.at(k * 16 + lane % 16, 2 * n + lane / 16));
          columns[0].set(r), columns[1].set(r + 2);
        } else {
          // In the order of the weights.
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            uint32_t r[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const T* const chunk = value.at(k * 8 + lane % 4 * 2 + i, 4 * n + 2 * half + lane / 16);
              r[i] = __float_as_uint(chunk[lane / 4 % 4]);
            }
            columns[half].set(r);
          }
        }
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          multiply_add(sums[t][2 * n], weights[t], columns[0]);
          multiply_add(sums[t][2 * n + 1], weights[t], columns[1]);
        }
      }
    }
    __syncthreads();  // before the tile is overwritten
  }
  wait_for_copies<0>();

#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float factor = past < 0 ? NAN : rows[t].factor(half);
      const int row = own + t * 16 + lane / 4 + 8 * half;
      if (row >= place.rows) continue;
      T* const out = place.at(p.y, row);
#pragma unroll
      for (int n = 0; n < kSize / 8; ++n) {
        const int column = n * 8 + lane % 4 * 2;
        if (column >= p.value.size) continue;
        store<2>(out + column, {sums[t][n][2 * half] * factor, sums[t][n][2 * half + 1] * factor});
      }
    }
  }
}

}  // namespace onnxfuse::attention::cuda
