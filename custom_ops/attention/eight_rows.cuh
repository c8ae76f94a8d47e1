// Attention for up to eight rows of a key-value head, of 16-bit numbers, as when decoding: bound by reading the cache.
//
// A warp owns tiles of 16 keys, one at a time, and has a softmax of its own. Keys and values go from memory to the
// registers of the tensor cores: a lane's 16-byte vector of a key holds what it needs for two products, since the
// order of the features, of keys and queries alike, is free; of the values a lane has the same features of two keys,
// which it interleaves. The next tile is on its way while one is used. Tiles are dealt to the warps of all blocks of a
// head in turn, so that the work is even however many keys there are, and the first tile can be on its way before a
// block knows how many: the length of a shared cache is in the mask, where all blocks of the head look for it together.
// These blocks are neighbours in a cluster, whose first one adds up what they found.
// Memory traffic: the keys and values of the head once; they are written to present on the way. Queries and new keys
// are rotated as they are loaded.
//
// Limit: reading, 4.2 TB/s on an H200. There 32 heads of 128 in float16 take 10 us at 1024 keys (1.7 TB/s) and 21 us at
// 4000 (3.1 TB/s): each further key comes at 4.3 TB/s, and 6 us pass before and after, mostly the latency of the
// instructions of one warp and of what it waits for one after the other. What is fetched before the queries are there
// is the first tile of each warp: more was slower, as the products before wait for it.
#pragma once

#include "attention/eight_rows.h"
#include "attention/key_tile.cuh"
#include "attention/past_search.cuh"

namespace onnxfuse::attention::cuda {

inline constexpr int kEightThreads = 128, kEightWarps = kEightThreads / kWarp;

// Blocks that share a multiprocessor and its registers.
template <int kSize>
inline constexpr int kEightBlocks = kSize <= 64    ? 4
                                    : kSize <= 128 ? 3
                                                   : 2;

// How the work is shared out.
struct EightRows {
  int slices;       // blocks of a cluster: they share the keys of a head, or of a part of them
  int group, rows;  // heads of q for each of k, rows of a head of k
};

// What a lane loads from.
template <int kCount>
struct Addresses {
  const char* at[kCount];

  // Has them computed here, not where they are used.
  __device__ void settle() {
#pragma unroll
    for (auto& address : at) asm volatile("" : "+l"(address));
  }
};

// Of a row, what `count` of its owners have found: the largest score, the sum of weights and that of column c.
struct Merged {
  float top = -INFINITY, total = 0, sum = 0;

  __device__ Merged(const float* partials, int step, int count, int c) {
#pragma unroll 4
    for (int i = 0; i < count; ++i) top = fmaxf(top, partials[i * step]);
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const float* const partial = partials + i * step;
      const float factor = decay(partial[0], top);
      total += factor * partial[1];
      sum += factor * partial[2 + c];
    }
  }
};

// Eight features of a row of position i, rotated.
template <typename T>
__device__ inline uint4 rotated_vector(const Rotary& rotary, const T* row, int feature, int i) {
  using onnxfuse::cuda::pack;
  float x[8];
  load_rotated<8>(rotary, row, feature, 0, i, x);
  return {pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]), pack<T>(x[6], x[7])};
}

// Inputs in shared memory: eight queries and a tile of new keys, [24, kSize] T, the cosines and the sines of a tile.
template <typename T, int kSize>
struct Stage {
  static constexpr int kTable = kTileKeys * kSize * static_cast<int>(sizeof(float));
  static constexpr int kRows = (kEightRows + kTileKeys) * kSize * static_cast<int>(sizeof(T));
  static constexpr int kBytes = kRows + 2 * kTable;
};

// Bytes of `count` rows of a warp or slice, and of all warps or the stage.
__host__ __device__ inline int partial_bytes(int count, int value_size) {
  return count * (2 + value_size) * static_cast<int>(sizeof(float));
}
template <typename T, int kSize>
__host__ __device__ int first_bytes(int count, int value_size) {
  const int partials = kEightWarps * partial_bytes(count, value_size);
  return partials > Stage<T, kSize>::kBytes ? (partials + 15) / 16 * 16 : Stage<T, kSize>::kBytes;
}

// Head sizes are multiples of 8 up to kSize; if kFast, they are kSize, and scores are products times the scale, of keys
// that the mask shows and the row may see.
template <typename T, int kSize, bool kFast>
__global__ void __launch_bounds__(kEightThreads, kEightBlocks<kSize>)
    attention_cuda_eight_rows(Arguments<T> a, EightRows shape) {
  using namespace onnxfuse::cuda;
  constexpr int kSets = kSize / 32, kGroups = kSize / 64;  // vectors of a lane's key, and of its value
  // What is staged, later partial results of the warps: [warps][count][2 + Dv]; then those of the slices.
  extern __shared__ __align__(128) unsigned char bytes[];
  using Search = PastSearch<kEightWarps, 4>;
  __shared__ typename Search::Mailbox mailbox;
  __shared__ uint4 query[kSets][kWarp], rotated[2][kSets][kWarp];
  __shared__ uint64_t has_partials;
  const Problem<T>& p = a.problem;
  const int slices = shape.slices, group = shape.group, rows = shape.rows, parts = a.parts.count;
  const int head = blockIdx.y, b = blockIdx.z, slice = cluster_rank();
  const int chunk = blockIdx.x / slices, part = chunk % parts, first = chunk / parts * kEightRows;
  const int count = min(rows - first, kEightRows), fresh = static_cast<int>(p.fresh);
  const int key_size = static_cast<int>(p.key.size), value_size = static_cast<int>(p.value.size);
  const int floats = 2 + value_size, step = count * floats;
  char* const memory = reinterpret_cast<char*>(bytes);
  T* const staged = reinterpret_cast<T*>(memory);
  char *const cosines = memory + Stage<T, kSize>::kRows, *const sines = cosines + Stage<T, kSize>::kTable;
  float* const partials = reinterpret_cast<float*>(memory);
  float* const gathered = reinterpret_cast<float*>(memory + first_bytes<T, kSize>(count, value_size));
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const bool rotates = a.rotary.cos != nullptr;
  const auto query_of = [&](int row) { return rows == group ? 0 : row / group; };
  const Mail partials_mail(&has_partials);
  Search search(&mailbox);
  const bool searches = a.room > 0 && a.past == nullptr;
  if (searches) search.expect();
  if (slice == 0 && threadIdx.x == 0) partials_mail.expect(slices * step * sizeof(float));
  enter_cluster();

  const HeadRows<T> all_keys(p.key, 0, b, head), all_values(p.value, 0, b, head);
  const int fresh_tiles = (fresh + kTileKeys - 1) / kTileKeys, workers = slices * parts * kEightWarps;
  // The length of a shared cache is not yet known; there are at most so many keys before the new ones.
  const int most = a.room > 0 ? static_cast<int>(min(a.room, a.mask.length)) - fresh : static_cast<int>(p.past);
  int n = (part * slices + slice) * kEightWarps + warp;
  const KeyTile start(n, fresh_tiles, fresh, most);
  if (n >= fresh_tiles && lane < start.count) {
    const int64_t row = start.at + lane;
    prefetch(all_keys.past + row * all_keys.past_row, key_size * sizeof(T));
    prefetch(all_values.past + row * all_values.past_row, value_size * sizeof(T));
  }

  // Of a product's 8 x 4 lanes, g is the row, the key or the vector of a value, and t the vector of a query or key, or
  // the pair of values.
  constexpr int kBytes = sizeof(T);
  uint4 key[2][kSets], value[4][kGroups];
  uint2 shown{};  // the mask's entry for key lane % 16 of the tile
  const Mask mask = a.mask.of_batch(b);
  // The keys of a lane's scores and values in the tile.
  const auto place_of = [&](int s) { return 2 * t + s % 2 + s / 2 * 8; };
  const auto key_rows = [&](const KeyTile& tile) {
    const char* const from = reinterpret_cast<const char*>(tile.fresh ? all_keys.fresh : all_keys.past);
    const int bytes = (tile.fresh ? all_keys.fresh_row : all_keys.past_row) * kBytes;
    Addresses<2> rows;
#pragma unroll
    for (int h = 0; h < 2; ++h) rows.at[h] = from + static_cast<int64_t>(tile.row(g + 8 * h)) * bytes;
    return rows;
  };
  const auto value_rows = [&](const KeyTile& tile) {
    const char* const from = reinterpret_cast<const char*>(tile.fresh ? all_values.fresh : all_values.past);
    const int bytes = (tile.fresh ? all_values.fresh_row : all_values.past_row) * kBytes;
    Addresses<4> rows;
#pragma unroll
    for (int s = 0; s < 4; ++s) rows.at[s] = from + static_cast<int64_t>(tile.row(place_of(s))) * bytes;
    return rows;
  };
  const auto fetch_keys = [&](const Addresses<2>& rows) {
#pragma unroll
    for (int h = 0; h < 2; ++h) load_vectors<kFast, 4>(rows.at[h], t, key_size, key[h]);
  };
  const auto fetch_values = [&](const Addresses<4>& rows) {
#pragma unroll
    for (int s = 0; s < 4; ++s) load_vectors<kFast, 8>(rows.at[s], g, value_size, value[s]);
  };
  const auto fetch_mask = [&](const KeyTile& tile) {
    shown = mask.bytes > 0 ? mask.raw_first(tile.key + min(lane % kTileKeys, tile.count - 1)) : uint2{1, 0};
  };

  // New keys that have to be rotated are one tile, of the first slice.
  const bool stages_keys = rotates && slice + part == 0;
  // Where vector i of what is staged comes from; null if there is none.
  const auto staged_from = [&](int i) {
    const int row = i / (kSize / 8), feature = i % (kSize / 8) * 8,
              at = row < kEightRows ? query_of(first + row) : row - kEightRows;
    Addresses<1> from{};
    if (feature >= key_size || (row < kEightRows && row >= count)) return from;
    from.at[0] = reinterpret_cast<const char*>(
        feature + (row < kEightRows ? row_of(p.q, b, head * group + first + row - at * group, at)
                                    : row_of(p.key.fresh, b, head, at)));
    return from;
  };

  // Instructions take their time one after the other; these need not wait.
  Addresses<2> first_keys = key_rows(start);
  Addresses<4> first_values = value_rows(start);
  Addresses<1> first_staged = staged_from(threadIdx.x);
  first_keys.settle();
  first_values.settle();
  first_staged.settle();
  wait_for_previous();
  let_next_start();
  const int known = past_of(a);  // unless this kernel searches

  // What is small is on its way first: the mask to registers, the rest to shared memory.
  if (searches) search.begin(a.mask, static_cast<int>(p.batch));
  const int vectors = (stages_keys ? kEightRows + fresh : kEightRows) * (kSize / 8);
  for (int i = threadIdx.x; i < vectors; i += kEightThreads) {
    const Addresses<1> from = i == static_cast<int>(threadIdx.x) ? first_staged : staged_from(i);
    if (from.at[0] != nullptr) onnxfuse::cuda::copy_async(staged + i * 8, from.at[0], true);
  }
  Rotary rotary = a.rotary;
  if (rotates) {
    const int entry = a.rotary.wide ? sizeof(float) : sizeof(T), table = fresh * a.rotary.width * entry;
    rotary.cos = cosines;
    rotary.sin = sines;
    for (int i = threadIdx.x * 8; i < 2 * table; i += kEightThreads * 8) {
      const bool is_sin = i >= table;
      const int at = is_sin ? i - table : i;
      const char* const from =
          static_cast<const char*>(is_sin ? a.rotary.sin : a.rotary.cos) + b * a.rotary.batch * entry;
      onnxfuse::cuda::copy_async<8>((is_sin ? sines : cosines) + at, from + at);
    }
  }

  if (n < fresh_tiles + (most + kTileKeys - 1) / kTileKeys && most >= 0) {
    fetch_keys(first_keys);
    fetch_values(first_values);
    fetch_mask(start);
  }
  wait_for_cluster();
  if (searches) search.send();
  onnxfuse::cuda::commit_copies();
  onnxfuse::cuda::wait_for_copies<0>();
  __syncthreads();
#pragma unroll 1
  for (int i = warp; i < (stages_keys ? 1 + (fresh + 7) / 8 : 1) * kSets; i += kEightWarps) {
    const int eight = i / kSets - 1, feature = (t + i % kSets * 4) * 8, row = eight < 0 ? g : g + eight * 8;
    uint4 vector{};
    if (row < (eight < 0 ? count : fresh) && feature < key_size) {
      vector = rotated_vector<T>(rotary, staged + (eight < 0 ? row : kEightRows + row) * kSize, feature,
                                 eight < 0 ? query_of(first + row) : row);
    }
    if (eight < 0) {
      query[i][lane] = {vector.x, vector.z, vector.y, vector.w};
    } else {
      rotated[eight][i % kSets][lane] = vector;
    }
  }
  const int past = searches ? search.past(a) : known;
  const bool fits = past >= 0;
  __syncthreads();
  if (n < fresh_tiles && fits) {
    const KeyTile tile(n, fresh_tiles, fresh, past);
    if (a.room > 0) fetch_mask(tile);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int i = 0; i < kSets; ++i) key[h][i] = rotates ? rotated[h][i][lane] : key[h][i];
    }
  }
  const int offset = past + fresh - static_cast<int>(p.queries);
  const bool copies = a.copies && first == 0;
  const int row = min(first + g, rows - 1);
  const Query<T> seen(a, b, head * group + row - query_of(row) * group, query_of(row), offset);
  const int tiles = fits ? fresh_tiles + (past + kTileKeys - 1) / kTileKeys : 0;
  // What lies before the window of the first row is not read, unless it has to be copied.
  const int64_t unseen = p.window > 0 && !a.moves_key && !a.moves_value ? query_of(first) + offset - p.window + 1 : 0;
  const int skipped = static_cast<int>(max(unseen, int64_t{0})) / kTileKeys;

  float sums[kGroups * 4][4] = {}, top = -INFINITY, total = 0;
  while (n < tiles) {
    const KeyTile tile(n, fresh_tiles, fresh, past);
    if (copies && p.key.present.data != nullptr && (tile.fresh || a.moves_key)) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        T* const to = row_of(p.key.present, b, head, tile.key + g + 8 * h) + t * 8;
#pragma unroll
        for (int i = 0; i < kSets; ++i) {
          if (g + 8 * h < tile.count && (t + 4 * i) * 8 < key_size) *reinterpret_cast<uint4*>(to + 32 * i) = key[h][i];
        }
      }
    }
    // Of the 16 rows of a product the upper eight are the same queries with the other half of each vector, so that a
    // lane's vector of a query serves both halves of that of a key.
    float products[2][2][4] = {};
#pragma unroll
    for (int i = 0; i < kSets; ++i) {
      const uint4 q = query[i][lane];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        multiply_add<T>(products[h][0], {q.x, q.y, q.z, q.w}, key[h][i].x, key[h][i].y);
        multiply_add<T>(products[h][1], {q.x, q.y, q.z, q.w}, key[h][i].z, key[h][i].w);
      }
    }
    const uint32_t bits = __ballot_sync(0xffffffff, (shown.x | shown.y) != 0) & ((1u << tile.count) - 1);
    n += workers;
    if (n >= fresh_tiles && n - fresh_tiles < skipped)
      n += (skipped - n + fresh_tiles + workers - 1) / workers * workers;
    const KeyTile next(n, fresh_tiles, fresh, past);
    if (n < tiles) fetch_keys(key_rows(next));

    float weights[4], now = top;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const float product = products[s / 2][0][s % 2] + products[s / 2][1][2 + s % 2];
      const int j = tile.key + place_of(s);
      const bool shown = bits >> place_of(s) & 1;
      if constexpr (kFast) {
        weights[s] = shown && j > seen.low && j <= seen.high ? product * p.scale : -INFINITY;
      } else {
        weights[s] = seen.score(a, product, j, shown);
      }
      now = fmaxf(now, weights[s]);
    }
    now = fmaxf(now, __shfl_xor_sync(0xffffffff, now, 1));
    now = fmaxf(now, __shfl_xor_sync(0xffffffff, now, 2));
    if (__any_sync(0xffffffff, now > top)) {
      const float less = decay(top, now);
      top = now;
      total *= less;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float of_row = __shfl_sync(0xffffffff, less, (2 * t + r) * 4);
#pragma unroll
        for (auto& sum : sums) sum[r] *= of_row, sum[r + 2] *= of_row;
      }
    }
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      weights[s] = weight(weights[s], top);
      total += weights[s];
    }
    const uint32_t low = pack<T>(weights[0], weights[1]), high = pack<T>(weights[2], weights[3]);

    if (tile.count < kTileKeys) {  // rows that are not of the tile may not be finite
#pragma unroll
      for (int s = 0; s < 4; ++s) {
#pragma unroll
        for (int i = 0; i < kGroups; ++i) {
          if (place_of(s) >= tile.count) value[s][i] = {};
        }
      }
    }
    if (copies && p.value.present.data != nullptr && (tile.fresh || a.moves_value)) {
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        T* const to = row_of(p.value.present, b, head, tile.key + place_of(s)) + g * 8;
#pragma unroll
        for (int i = 0; i < kGroups; ++i) {
          if (place_of(s) < tile.count && (g + 8 * i) * 8 < value_size) {
            *reinterpret_cast<uint4*>(to + 64 * i) = value[s][i];
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      const auto multiply = [&](float (&sum)[4], uint32_t v0, uint32_t v1, uint32_t v2, uint32_t v3) {
        multiply_add<T>(sum, {lower_halves(v0, v1), upper_halves(v0, v1), lower_halves(v2, v3), upper_halves(v2, v3)},
                        low, high);
      };
      multiply(sums[4 * i], value[0][i].x, value[1][i].x, value[2][i].x, value[3][i].x);
      multiply(sums[4 * i + 1], value[0][i].y, value[1][i].y, value[2][i].y, value[3][i].y);
      multiply(sums[4 * i + 2], value[0][i].z, value[1][i].z, value[2][i].z, value[3][i].z);
      multiply(sums[4 * i + 3], value[0][i].w, value[1][i].w, value[2][i].w, value[3][i].w);
    }
    if (n < tiles) {
      fetch_values(value_rows(next));
      fetch_mask(next);
    }
  }

  float* const own = partials + warp * step;
  total += __shfl_xor_sync(0xffffffff, total, 1);
  total += __shfl_xor_sync(0xffffffff, total, 2);
  if (t == 0 && g < count) own[g * floats] = top, own[g * floats + 1] = fits ? total : NAN;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float* const out = own + (2 * t + r) * floats + 2;
#pragma unroll
    for (int i = 0; i < kGroups * 4; ++i) {
      const int feature = i / 4 * 64 + g * 8 + i % 4 * 2;
      if (2 * t + r < count && feature < value_size) out[feature] = sums[i][r], out[feature + 1] = sums[i][r + 2];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count * value_size; i += kEightThreads) {
    const int r = i / value_size, c = i - r * value_size;
    const Merged found(partials + r * floats, step, kEightWarps, c);
    float* const to = gathered + slice * step + r * floats;
    if (c == 0) {
      partials_mail.send(0, to, found.top);
      partials_mail.send(0, to + 1, found.total);
    }
    partials_mail.send(0, to + 2 + c, found.sum);
  }
  if (slice > 0) return;
  partials_mail.wait();
  for (int i = threadIdx.x; i < count * value_size; i += kEightThreads) {
    const int r = i / value_size, c = i - r * value_size, row = first + r;
    const Merged found(gathered + r * floats, step, slices, c);
    if (parts > 1) {
      float* const out = a.parts.of((static_cast<int64_t>(b) * p.kv_heads + head) * rows + row, part);
      if (c == 0) out[0] = found.top, out[1] = found.total;
      out[2 + c] = found.sum;
    } else {
      const int query = query_of(row);
      row_of(p.y, b, head * group + row - query * group, query)[c] =
          narrow<T>(found.total == 0 ? 0.0f : found.sum / found.total);
    }
  }
}

}  // namespace onnxfuse::attention::cuda
