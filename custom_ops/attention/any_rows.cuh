// Attention for any alignment and dtype, and any head sizes that shared memory holds, in float32 without tensor cores.
//
// A block owns kRows rows of one key-value head and one part of its keys, which pass through shared memory in tiles of
// kKeys. In the products q k^T a warp owns a row at a time and a lane a key; in the sums of values a thread owns a
// column of all rows.
#pragma once

#include "attention/arguments.cuh"

namespace onnxfuse::attention::cuda {

inline constexpr int kAnyRows = 16, kAnyKeys = kWarp, kAnyThreads = 128;

// Odd, so that the rows of a tile start in different banks.
__host__ __device__ inline int64_t padded(int64_t size) { return size | 1; }

inline int64_t any_rows_bytes(int64_t size, int64_t value_size) {
  const int64_t floats = (kAnyRows + kAnyKeys) * padded(size) + kAnyKeys * padded(value_size) + kAnyRows * value_size +
                         kAnyRows * (kAnyKeys + 3);
  return floats * static_cast<int64_t>(sizeof(float));
}

template <typename T>
__global__ void __launch_bounds__(kAnyThreads) attention_cuda_any_rows(Arguments<T> a) {
  extern __shared__ float memory[];
  const Problem<T>& p = a.problem;
  const int64_t size = p.key.size, value_size = p.value.size, group = p.heads / p.kv_heads, rows = p.queries * group;
  float* const q = memory;
  float* const k = q + kAnyRows * padded(size);
  float* const v = k + kAnyKeys * padded(size);
  float* const sums = v + kAnyKeys * padded(value_size);
  float* const weights = sums + kAnyRows * value_size;
  float* const top = weights + kAnyRows * kAnyKeys;
  float* const total = top + kAnyRows;
  float* const decays = total + kAnyRows;

  const int64_t tiles = divide_up(rows, kAnyRows);
  const int64_t first = blockIdx.x % tiles * kAnyRows, head = blockIdx.x / tiles % p.kv_heads,
                b = blockIdx.x / tiles / p.kv_heads;
  const int part = blockIdx.y, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int past = past_of(a);
  const int64_t keys = past + p.fresh, offset = keys - p.queries;
  const HeadRows<T> all_keys(p.key, past, b, head), all_values(p.value, past, b, head);
  const int64_t each = divide_up(divide_up(keys, a.parts.count), kAnyKeys) * kAnyKeys;
  const int64_t begin = part * each, end = min(begin + each, keys);
  const int count = static_cast<int>(min(rows - first, static_cast<int64_t>(kAnyRows)));

  for (int r = 0; r < count; ++r) {
    const int64_t row = first + r;
    const T* from = row_of(p.q, b, head * group + row % group, row / group);
    for (int64_t d = threadIdx.x; d < size; d += kAnyThreads) q[r * padded(size) + d] = widen(from[d]);
  }
  for (int64_t i = threadIdx.x; i < kAnyRows * value_size; i += kAnyThreads) sums[i] = past < 0 ? NAN : 0.0f;
  if (threadIdx.x < kAnyRows) {
    top[threadIdx.x] = past < 0 ? 0.0f : -INFINITY;
    total[threadIdx.x] = past < 0 ? NAN : 0.0f;
  }
  for (int64_t tile = begin; past >= 0 && tile < end; tile += kAnyKeys) {
    __syncthreads();
    for (int j = warp; j < kAnyKeys; j += kAnyThreads / kWarp) {
      const bool exists = tile + j < end;
      const T* key = exists ? all_keys.at(static_cast<int>(tile) + j) : nullptr;
      const T* value = exists ? all_values.at(static_cast<int>(tile) + j) : nullptr;
      for (int64_t d = lane; d < size; d += kWarp) k[j * padded(size) + d] = exists ? widen(key[d]) : 0.0f;
      for (int64_t d = lane; d < value_size; d += kWarp)
        v[j * padded(value_size) + d] = exists ? widen(value[d]) : 0.0f;
    }
    __syncthreads();
    for (int r = warp; r < count; r += kAnyThreads / kWarp) {
      float product = 0;
      for (int64_t d = 0; d < size; ++d) product += q[r * padded(size) + d] * k[lane * padded(size) + d];
      const int row = static_cast<int>(first) + r, j = static_cast<int>(tile) + lane;
      const Query<T> query(a, b, static_cast<int>(head * group + row % group), static_cast<int>(row / group),
                           static_cast<int>(offset));
      const float x = j < end ? query.score(a, product, j, a.mask.shows(b, j)) : -INFINITY;
      float largest = x;
#pragma unroll
      for (int step = kWarp / 2; step > 0; step /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, step));
      }
      const float old = top[r], now = fmaxf(old, largest), w = weight(x, now), sum = onnxfuse::cuda::warp_sum(w);
      weights[r * kAnyKeys + lane] = w;
      __syncwarp();
      if (lane == 0) {
        decays[r] = decay(old, now);
        total[r] = total[r] * decays[r] + sum;
        top[r] = now;
      }
    }
    __syncthreads();
    for (int64_t c = threadIdx.x; c < value_size; c += kAnyThreads) {
      float column[kAnyRows] = {};
      for (int j = 0; j < min(end - tile, static_cast<int64_t>(kAnyKeys)); ++j) {
        const float value = v[j * padded(value_size) + c];
#pragma unroll
        for (int r = 0; r < kAnyRows; ++r) {
          if (r < count) column[r] += weights[r * kAnyKeys + j] * value;
        }
      }
#pragma unroll
      for (int r = 0; r < kAnyRows; ++r) {
        if (r < count) sums[r * value_size + c] = sums[r * value_size + c] * decays[r] + column[r];
      }
    }
  }
  __syncthreads();
  for (int r = 0; r < count; ++r) {
    const int64_t row = first + r;
    if (a.parts.count > 1) {
      float* out = a.parts.of((b * p.kv_heads + head) * rows + row, part);
      if (threadIdx.x == 0) out[0] = top[r], out[1] = total[r];
      for (int64_t c = threadIdx.x; c < value_size; c += kAnyThreads) out[2 + c] = sums[r * value_size + c];
    } else {
      T* out = row_of(p.y, b, head * group + row % group, row / group);
      const float sum = total[r];
      for (int64_t c = threadIdx.x; c < value_size; c += kAnyThreads) {
        out[c] = narrow<T>(sum == 0 ? 0.0f : sums[r * value_size + c] / sum);
      }
    }
  }
}

}  // namespace onnxfuse::attention::cuda
