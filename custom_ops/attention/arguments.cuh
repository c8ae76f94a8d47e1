// What the CUDA kernels of Attention take, and what they share: which keys are visible, and scores.
#pragma once

#include <type_traits>

#include "attention/attention.h"
#include "common/device.cuh"

namespace onnxfuse::attention::cuda {

using onnxfuse::cuda::divide_up;
using onnxfuse::cuda::kWarp;
using onnxfuse::cuda::narrow;
using onnxfuse::cuda::widen;

inline constexpr float kLog2E = 1.44269504f;

// The padding mask [B, length]; `bytes` of an element, 0 without a mask.
struct Mask {
  const void* data;
  int bytes;
  int64_t length;

  // Whether there is no mask, or it shows key j of batch b.
  __device__ bool shows(int64_t b, int j) const { return of_batch(b).shows_first(j); }

  // What the first batch has for key j, to be compared with zero once it is there. Not without a mask.
  __device__ uint2 raw_first(int j) const {
    if (bytes == 8) return static_cast<const uint2*>(data)[j];
    if (bytes == 4) return {static_cast<const uint32_t*>(data)[j], 0};
    return {static_cast<const uint8_t*>(data)[j], 0};
  }

  // The mask of batch b, as that of the first one.
  __device__ Mask of_batch(int64_t b) const {
    return {static_cast<const char*>(data) + b * length * bytes, bytes, length};
  }

  __device__ bool shows_first(int j) const {
    if (bytes == 0) return true;
    if (bytes == 8) return static_cast<const int64_t*>(data)[j] != 0;
    if (bytes == 4) return static_cast<const int32_t*>(data)[j] != 0;
    return static_cast<const uint8_t*>(data)[j] != 0;
  }
};

// Where the parts of the keys go that blocks of their own work on: for each row of each key-value head and each part,
// the largest score, the sum of the weights and the weighted sum of the values.
struct Parts {
  int count;
  float* data;
  int64_t floats;  // 2 + Dv

  __device__ float* of(int64_t row, int part) const { return data + (row * count + part) * floats; }
};

// Tables by which queries and new keys are rotated as they are loaded; nothing is where cos is null.
struct Rotary {
  const void *cos, *sin;
  bool wide;  // of dtype float32, not T
  bool interleaved;
  int size, width;  // R; entries of a row
  int64_t batch;    // entries of a batch, 0 if all share a table
};

template <typename T>
struct Arguments {
  Problem<T> problem;  // of a shared cache without `past`
  const int* past;     // where that is then, on the device; else null
  Mask mask;
  int64_t room;                 // rows of a shared cache, 0 without one
  int64_t bias_keys;            // 0 without a bias
  bool copies;                  // the kernel that reads the cache writes present, too
  bool moves_key, moves_value;  // present gets the past rows, too
  Parts parts;
  Rotary rotary;
};

// Calls body(the least of these sizes that holds a head of `size` features); kernels are compiled for each of them.
template <int kSize, int... kLarger, class Body>
void for_head_size(int64_t size, const Body& body) {
  if constexpr (sizeof...(kLarger) > 0) {
    if (size > kSize) return for_head_size<kLarger...>(size, body);
  }
  body(std::integral_constant<int, kSize>{});
}

template <typename T>
__device__ inline T* row_of(const Rows<T>& rows, int64_t b, int64_t h, int64_t r) {
  return rows.data + b * rows.batch + h * rows.head + r * rows.row;
}

// kN features of a row from `feature` on, rotated by the tables of position i of batch b. Features of a pair are either
// among these, or kN neighbours of them are; the tables are aligned as vectors.
template <int kN, typename T>
__device__ inline void load_rotated(const Rotary& rotary, const T* row, int feature, int64_t b, int i,
                                    float (&values)[kN]) {
  onnxfuse::cuda::load<kN>(row + feature, values);
  if (rotary.cos == nullptr || feature >= rotary.size) return;
  const int half = rotary.size / 2;
  const bool whole = rotary.width == rotary.size, first = feature < half;
  const int64_t table = b * rotary.batch + static_cast<int64_t>(i) * rotary.width;
  float others[kN], c[kN], s[kN];
  const auto load_entries = [&](auto count, int64_t at) {
    constexpr int kCount = decltype(count)::value;
    float (&cosines)[kCount] = reinterpret_cast<float (&)[kCount]>(c),
          (&sines)[kCount] = reinterpret_cast<float (&)[kCount]>(s);
    if (rotary.wide) {
      onnxfuse::cuda::load<kCount>(static_cast<const float*>(rotary.cos) + at, cosines);
      onnxfuse::cuda::load<kCount>(static_cast<const float*>(rotary.sin) + at, sines);
    } else {
      onnxfuse::cuda::load<kCount>(static_cast<const T*>(rotary.cos) + at, cosines);
      onnxfuse::cuda::load<kCount>(static_cast<const T*>(rotary.sin) + at, sines);
    }
  };
  if (rotary.interleaved) {
#pragma unroll
    for (int j = 0; j < kN; ++j) others[j] = j % 2 == 0 ? -values[j + 1] : values[j - 1];
    if (whole) {
      load_entries(std::integral_constant<int, kN>{}, table + feature);
    } else {
      load_entries(std::integral_constant<int, kN / 2>{}, table + feature / 2);
#pragma unroll
      for (int j = kN - 1; j > 0; --j) c[j] = c[j / 2], s[j] = s[j / 2];
    }
  } else {
    onnxfuse::cuda::load<kN>(row + (first ? feature + half : feature - half), others);
#pragma unroll
    for (int j = 0; j < kN; ++j) others[j] = first ? -others[j] : others[j];
    load_entries(std::integral_constant<int, kN>{}, table + (whole || first ? feature : feature - half));
  }
#pragma unroll
  for (int j = 0; j < kN; ++j) values[j] = values[j] * c[j] + others[j] * s[j];
}

// The rows of one head of the keys or values: of the past, and new ones.
template <typename T>
struct HeadRows {
  const T *past, *fresh;
  int past_row, fresh_row, count;  // strides; rows of the past

  __device__ HeadRows(const Cache<T>& cache, int past, int64_t b, int64_t h)
      : past(row_of(cache.past, b, h, 0)),
        fresh(row_of(cache.fresh, b, h, 0)),
        past_row(static_cast<int>(cache.past.row)),
        fresh_row(static_cast<int>(cache.fresh.row)),
        count(past) {}

  __device__ const T* at(int j) const {
    return j < count ? past + static_cast<int64_t>(j) * past_row : fresh + static_cast<int64_t>(j - count) * fresh_row;
  }

  // The same without a branch, for a thread that looks for many rows.
  __device__ const T* at_once(int j) const {
    const bool old = j < count;
    return (old ? past : fresh) + static_cast<int64_t>(old ? j : j - count) * (old ? past_row : fresh_row);
  }
};

// P, or -1 if the mask of a shared cache does not fit the buffer, the new keys or the bias. The host cannot look
// without waiting for the device, so the kernels then write NaN.
template <typename T>
__device__ inline int past_of(const Arguments<T>& a) {
  return a.past != nullptr ? *a.past : static_cast<int>(a.problem.past);
}

// Which keys one query sees, were it not for the mask, and where its row of the bias is.
template <typename T>
struct Query {
  int low, high;  // keys low < j <= high
  int64_t bias;

  Query() = default;
  // Query i of head h; offset is L - S.
  __device__ Query(const Arguments<T>& a, int64_t b, int h, int i, int offset)
      : low(a.problem.window > 0 ? static_cast<int>(max(i + offset - a.problem.window, int64_t{-1})) : -1),
        high(a.problem.causal ? i + offset : 0x7fffffff),
        bias(b * a.problem.bias.batch + h * a.problem.bias.head + i * a.problem.bias.row) {}

  // The score of key j, -infinity if the query does not see it.
  __device__ float score(const Arguments<T>& a, float product, int j, bool shown) const {
    const Problem<T>& p = a.problem;
    float x = shown && j > low && j <= high ? product * p.scale : -INFINITY;
    if (p.softcap <= 0 && p.bias.single == nullptr && p.bias.narrow == nullptr) return x;
    if (x == -INFINITY) return x;
    if (p.softcap > 0) x = p.softcap * tanhf(x / p.softcap);
    if (p.bias.single != nullptr) return x + p.bias.single[bias + j];
    if (p.bias.narrow != nullptr) return x + widen(p.bias.narrow[bias + j]);
    return x;
  }
};

// 2^x to two units; 0 below the normal numbers.
__device__ inline float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// e^(x - top), 0 for a hidden key even where no key is visible, NaN for a NaN.
__device__ inline float weight(float x, float top) { return x == -INFINITY ? 0.0f : power_of_two((x - top) * kLog2E); }

// What sums over keys seen so far are worth when the largest score rises from `old` to `top`.
__device__ inline float decay(float old, float top) { return old == top ? 1.0f : power_of_two((old - top) * kLog2E); }

}  // namespace onnxfuse::attention::cuda
