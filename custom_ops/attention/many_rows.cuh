// Attention for many rows of 16-bit numbers, as in a prompt: products on tensor cores, scores never written.
//
// A block owns 64 rows of one key-value head, each of its warps 16. Keys and values pass through shared memory in
// tiles, the next on its way while one is used; tiles that no row of the block sees are skipped. Head sizes are
// multiples of 8 up to kSize; the features up to kSize are zeros. Weights are rounded to T before they multiply values.
// Source: Dao 2023, FlashAttention-2, arXiv:2307.08691.
#pragma once

#include "attention/arguments.cuh"
#include "common/mma.cuh"

namespace onnxfuse::attention::cuda {

inline constexpr int kManyRows = 64, kManyThreads = 128;

// kSize 256 has smaller tiles, to fit the 99 KiB of shared memory of compute capability 8.6.
template <int kSize>
inline constexpr int kManyKeys = kSize <= 128 ? 64 : 32;

// Rows of kSize elements in shared memory, whose 16-byte chunks are permuted so that eight rows of one chunk lie in
// different banks.
template <typename T, int kSize>
struct Tile {
  T* data;

  __device__ T* at(int row, int chunk) const { return data + row * kSize + (chunk ^ (row & 7)) * 8; }
};

template <typename T, int kSize>
constexpr int64_t many_rows_bytes() {
  return (kManyRows + 4 * kManyKeys<kSize>)*kSize * static_cast<int64_t>(sizeof(T));
}

template <typename T, int kSize>
__global__ void __launch_bounds__(kManyThreads) attention_cuda_many_rows(Arguments<T> a) {
  using namespace onnxfuse::cuda;
  constexpr int kKeys = kManyKeys<kSize>, kChunks = kSize / 8;
  extern __shared__ __align__(128) unsigned char bytes[];
  const Problem<T>& p = a.problem;
  const int64_t group = p.heads / p.kv_heads, rows = p.queries * group, tiles = divide_up(rows, kManyRows);
  // The last rows see the most keys: they go first.
  const int64_t first = (tiles - 1 - blockIdx.x) * kManyRows;
  const int64_t head = blockIdx.y, b = blockIdx.z;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int past = past_of(a), keys = past + static_cast<int>(p.fresh), offset = keys - static_cast<int>(p.queries);

  const Tile<T, kSize> q{reinterpret_cast<T*>(bytes)};
  const auto key_tile = [&](int stage) { return Tile<T, kSize>{q.data + (kManyRows + 2 * stage * kKeys) * kSize}; };
  const auto value_tile = [&](int stage) {
    return Tile<T, kSize>{q.data + (kManyRows + (2 * stage + 1) * kKeys) * kSize};
  };
  // Of every tile a thread copies one chunk of some rows.
  constexpr int kRowStep = kManyThreads / kChunks;
  const int own_chunk = threadIdx.x % kChunks, own_row = threadIdx.x / kChunks;
  const bool has_key = own_chunk * 8 < p.key.size, has_value = own_chunk * 8 < p.value.size;
  for (int r = own_row; r < kManyRows; r += kRowStep) {
    const int64_t row = first + r;
    const bool exists = row < rows && has_key;
    const T* from = exists ? row_of(p.q, b, head * group + row % group, row / group) + own_chunk * 8 : p.q.data;
    copy_async(q.at(r, own_chunk), from, exists);
  }
  const HeadRows<T> all_keys(p.key, past, b, head), all_values(p.value, past, b, head);
  const auto fetch = [&](int tile, int stage) {
    const auto to_key = key_tile(stage), to_value = value_tile(stage);
#pragma unroll
    for (int r = own_row; r < kKeys; r += kRowStep) {
      const int j = tile * kKeys + r, existing = min(j, keys - 1);
      copy_async(to_key.at(r, own_chunk), has_key ? all_keys.at(existing) + own_chunk * 8 : p.q.data,
                 has_key && j < keys);
      copy_async(to_value.at(r, own_chunk), has_value ? all_values.at(existing) + own_chunk * 8 : p.q.data,
                 has_value && j < keys);
    }
  };

  // The tiles of keys that any row of the block may see.
  const int low = static_cast<int>(first / group);
  const int high = static_cast<int>(min((first + kManyRows - 1) / group, p.queries - 1));
  const int window = static_cast<int>(min(p.window, int64_t{0x3fffffff}));
  const int visible_end = p.causal ? max(min(keys, high + offset + 1), 0) : keys;
  const int visible_begin = window > 0 ? max(low + offset - window + 1, 0) : 0;
  const int first_tile = visible_begin / kKeys, end_tile = past < 0 ? 0 : (visible_end + kKeys - 1) / kKeys;
  const Mask mask = a.mask.of_batch(b);
  const bool is_plain = a.mask.bytes == 0 && p.bias.narrow == nullptr && p.bias.single == nullptr && p.softcap <= 0;

  // The rows of this lane: lane / 4 of the warp's, and that eight further on.
  const int64_t own[2] = {first + warp * 16 + lane / 4, first + warp * 16 + lane / 4 + 8};
  const auto query_of = [&](int half) {
    const int row = static_cast<int>(min(own[half], rows - 1)), heads = static_cast<int>(group);
    return Query<T>(a, b, static_cast<int>(head) * heads + row % heads, row / heads, offset);
  };
  const Query<T> queries[2] = {query_of(0), query_of(1)};
  float top[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
  float sums[kSize / 8][4] = {};
  if (first_tile < end_tile) fetch(first_tile, 0);
  commit_copies();
  for (int tile = first_tile; tile < end_tile; ++tile) {
    const int stage = (tile - first_tile) % 2;
    if (tile + 1 < end_tile) fetch(tile + 1, 1 - stage);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();

    float scores[kKeys / 8][4] = {};
    const auto key = key_tile(stage);
#pragma unroll
    for (int k = 0; k < kSize / 16; ++k) {
      uint32_t rows_of_q[4];
      load_matrices(rows_of_q, q.at(warp * 16 + lane % 16, 2 * k + lane / 16));
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t r[4];
        load_matrices(r, key.at(n * 16 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
        multiply_add<T>(scores[2 * n], rows_of_q, r[0], r[1]);
        multiply_add<T>(scores[2 * n + 1], rows_of_q, r[2], r[3]);
      }
    }

    const int start = tile * kKeys;
    const bool all_visible = is_plain && start + kKeys <= keys && (!p.causal || start + kKeys <= low + offset + 1) &&
                             (window <= 0 || start > high + offset - window);
    if (all_visible) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) scores[n][c] *= p.scale;
      }
    } else {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int j = start + n * 8 + lane % 4 * 2 + c % 2;
          scores[n][c] = queries[c / 2].score(a, scores[n][c], j, j < keys && mask.shows_first(j));
        }
      }
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float now = top[half];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) now = fmaxf(now, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      now = fmaxf(now, __shfl_xor_sync(0xffffffff, now, 1));
      now = fmaxf(now, __shfl_xor_sync(0xffffffff, now, 2));
      const float less = decay(top[half], now);
      top[half] = now;
      total[half] *= less;
#pragma unroll
      for (int n = 0; n < kSize / 8; ++n) sums[n][2 * half] *= less, sums[n][2 * half + 1] *= less;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int c = 2 * half; c < 2 * half + 2; ++c) {
          scores[n][c] = weight(scores[n][c], now);
          total[half] += scores[n][c];
        }
      }
    }

    const auto value = value_tile(stage);
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      const uint32_t weights[4] = {
          pack<T>(scores[2 * k][0], scores[2 * k][1]), pack<T>(scores[2 * k][2], scores[2 * k][3]),
          pack<T>(scores[2 * k + 1][0], scores[2 * k + 1][1]), pack<T>(scores[2 * k + 1][2], scores[2 * k + 1][3])};
#pragma unroll
      for (int n = 0; n < kSize / 16; ++n) {
        uint32_t r[4];
        load_matrices_transposed(r, value.at(k * 16 + lane % 16, 2 * n + lane / 16));
        multiply_add<T>(sums[2 * n], weights, r[0], r[1]);
        multiply_add<T>(sums[2 * n + 1], weights, r[2], r[3]);
      }
    }
    __syncthreads();  // before the tile is overwritten
  }
  wait_for_copies<0>();

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = total[half];
    sum += __shfl_xor_sync(0xffffffff, sum, 1);
    sum += __shfl_xor_sync(0xffffffff, sum, 2);
    if (past < 0) sum = NAN;
    if (own[half] >= rows) continue;
    const float factor = sum == 0 ? 0.0f : 1.0f / sum;
    T* out = row_of(p.y, b, head * group + own[half] % group, own[half] / group);
#pragma unroll
    for (int n = 0; n < kSize / 8; ++n) {
      const int column = n * 8 + lane % 4 * 2;
      if (column >= p.value.size) continue;
      *reinterpret_cast<uint32_t*>(out + column) = pack<T>(sums[n][2 * half] * factor, sums[n][2 * half + 1] * factor);
    }
  }
}

}  // namespace onnxfuse::attention::cuda
