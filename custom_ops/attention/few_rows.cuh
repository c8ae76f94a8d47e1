// Attention for few rows of a key-value head, as when decoding: bound by reading the cache.
//
// A block owns up to kRows rows of one key-value head and one part of its keys. `lanes` neighbouring lanes own a key at
// a time, each a 16-byte vector of its features; kDeep keys are loaded before the first is used. Every group of lanes
// has a softmax of its own; they are merged at the end, in the warp by shuffles, then through shared memory.
// Memory traffic: the keys and values of the head once; they are written to present on the way.
#pragma once

#include "attention/arguments.cuh"

namespace onnxfuse::attention::cuda {

inline constexpr int kFewThreads = 128, kFewWarps = kFewThreads / kWarp, kDeep = 4;

template <typename T>
inline constexpr int kFeatures = 16 / sizeof(T);  // of a lane

template <typename T>
using Vector = onnxfuse::cuda::Vector<T, kFeatures<T>>;

template <typename T>
__device__ inline Vector<T> read(const T* p) {
  return *reinterpret_cast<const Vector<T>*>(p);
}

template <typename T>
__device__ inline void write(T* p, const Vector<T>& vector) {
  *reinterpret_cast<Vector<T>*>(p) = vector;
}

// Lanes of a key: the least power of two that holds `size` features.
template <typename T>
int few_rows_lanes(int64_t size) {
  int lanes = 1;
  while (lanes * kFeatures<T> < size) lanes *= 2;
  return lanes;
}

template <typename T, int kRows>
struct FewRowsState {
  float top, total, sums[kFeatures<T>];

  __device__ void add(float other_top, float other_total, const float (&other)[kFeatures<T>]) {
    const float now = fmaxf(top, other_top), mine = decay(top, now), theirs = decay(other_top, now);
    top = now;
    total = total * mine + other_total * theirs;
#pragma unroll
    for (int d = 0; d < kFeatures<T>; ++d) sums[d] = sums[d] * mine + other[d] * theirs;
  }
};

template <typename T, int kRows>
__global__ void __launch_bounds__(kFewThreads) attention_cuda_few_rows(Arguments<T> a, int lanes) {
  constexpr int kN = kFeatures<T>;
  using State = FewRowsState<T, kRows>;
  extern __shared__ float memory[];
  const Problem<T>& p = a.problem;
  const int group = static_cast<int>(p.heads / p.kv_heads), rows = static_cast<int>(p.queries) * group;
  const int tiles = (rows + kRows - 1) / kRows, first = blockIdx.x % tiles * kRows;
  const int64_t head = blockIdx.x / tiles % p.kv_heads, b = blockIdx.x / tiles / p.kv_heads;
  const int part = blockIdx.y, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int feature = lane % lanes * kN;  // the lane's first
  const int groups = kWarp / lanes, owner = warp * groups + lane / lanes, step = kFewWarps * groups;
  const int past = past_of(a), keys = past + static_cast<int>(p.fresh), offset = keys - static_cast<int>(p.queries);
  const int each = (keys + a.parts.count - 1) / a.parts.count, begin = part * each, end = min(begin + each, keys);
  const bool has_key = feature < p.key.size, has_value = feature < p.value.size;
  const HeadRows<T> all_keys(p.key, past, b, head), all_values(p.value, past, b, head);
  const bool copies = a.copies && first == 0;
  const bool writes_key = copies && has_key && p.key.present.data != nullptr;
  const bool writes_value = copies && has_value && p.value.present.data != nullptr;
  const int moved_key = a.moves_key ? 0 : past, moved_value = a.moves_value ? 0 : past;

  const auto query_of = [&](int r) {
    const int row = min(first + r, rows - 1);
    return Query<T>(a, b, static_cast<int>(head) * group + row % group, row / group, offset);
  };
  float q[kRows][kN];
  State states[kRows];
  Query<T> queries[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int row = first + r;
    queries[r] = query_of(r);
#pragma unroll
    for (int d = 0; d < kN; ++d) q[r][d] = states[r].sums[d] = 0;
    if (row < rows && has_key) {
      onnxfuse::cuda::load<kN>(row_of(p.q, b, head * group + row % group, row / group) + feature, q[r]);
    }
    states[r].top = -INFINITY;
    states[r].total = past < 0 ? NAN : 0.0f;
  }
  // All lanes of a warp go round equally often: the sums over lanes need them all.
  for (int base = begin; past >= 0 && base < end; base += step * kDeep) {
    Vector<T> key[kDeep], value[kDeep];
    bool shown[kDeep];
#pragma unroll
    for (int u = 0; u < kDeep; ++u) {
      const int j = base + u * step + owner;
      key[u] = j < end && has_key ? read(all_keys.at(j) + feature) : Vector<T>{};
      value[u] = j < end && has_value ? read(all_values.at(j) + feature) : Vector<T>{};
      shown[u] = j < end && a.mask.shows(b, j);
    }
#pragma unroll
    for (int u = 0; u < kDeep; ++u) {
      const int j = base + u * step + owner;
      if (writes_key && j >= moved_key && j < end) write(row_of(p.key.present, b, head, j) + feature, key[u]);
      if (writes_value && j >= moved_value && j < end) write(row_of(p.value.present, b, head, j) + feature, value[u]);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float scores[kDeep], top = states[r].top;
#pragma unroll
      for (int u = 0; u < kDeep; ++u) {
        float product = 0;
#pragma unroll
        for (int d = 0; d < kN; ++d) product += q[r][d] * widen(key[u].lane[d]);
        for (int other = lanes / 2; other > 0; other /= 2) product += __shfl_xor_sync(0xffffffff, product, other);
        scores[u] = queries[r].score(a, product, base + u * step + owner, shown[u]);
        top = fmaxf(top, scores[u]);
      }
      const float less = decay(states[r].top, top);
      states[r].top = top;
      states[r].total *= less;
#pragma unroll
      for (int d = 0; d < kN; ++d) states[r].sums[d] *= less;
#pragma unroll
      for (int u = 0; u < kDeep; ++u) {
        const float w = weight(scores[u], top);
        states[r].total += w;
#pragma unroll
        for (int d = 0; d < kN; ++d) states[r].sums[d] += w * widen(value[u].lane[d]);
      }
    }
  }

#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    for (int other = lanes; other < kWarp; other *= 2) {
      float sums[kN];
      const float top = __shfl_xor_sync(0xffffffff, states[r].top, other);
      const float total = __shfl_xor_sync(0xffffffff, states[r].total, other);
#pragma unroll
      for (int d = 0; d < kN; ++d) sums[d] = __shfl_xor_sync(0xffffffff, states[r].sums[d], other);
      states[r].add(top, total, sums);
    }
  }
  State* const shared = reinterpret_cast<State*>(memory);  // [warps - 1][kRows][lanes]
  if (warp > 0 && lane < lanes) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) shared[((warp - 1) * kRows + r) * lanes + lane] = states[r];
  }
  __syncthreads();
  if (warp > 0 || lane >= lanes) return;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int row = first + r;
    if (row >= rows) return;
    State& state = states[r];
    for (int w = 1; w < kFewWarps; ++w) {
      const State& other = shared[((w - 1) * kRows + r) * lanes + lane];
      state.add(other.top, other.total, other.sums);
    }
    if (a.parts.count > 1) {
      float* out = a.parts.of((b * p.kv_heads + head) * rows + row, part);
      if (lane == 0) out[0] = state.top, out[1] = state.total;
      for (int d = 0; d < kN && has_value; ++d) out[2 + feature + d] = state.sums[d];
    } else if (has_value) {
#pragma unroll
      for (int d = 0; d < kN; ++d) state.sums[d] = state.total == 0 ? 0.0f : state.sums[d] / state.total;
      onnxfuse::cuda::store<kN>(row_of(p.y, b, head * group + row % group, row / group) + feature, state.sums);
    }
  }
}

template <typename T, int kRows>
int64_t few_rows_bytes(int lanes) {
  return (kFewWarps - 1) * kRows * lanes * static_cast<int64_t>(sizeof(FewRowsState<T, kRows>));
}

}  // namespace onnxfuse::attention::cuda
