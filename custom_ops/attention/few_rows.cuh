// Attention for few rows of a key-value head, as when decoding, of float32 (eight_rows.cuh has 16-bit numbers): bound
// by reading the cache.
//
// A block owns up to kRows rows of one key-value head and one part of its keys. `lanes` neighbouring lanes own a key at
// a time, each a 16-byte vector of its features; kDeep keys are loaded before the first is used. Every group of lanes
// has a softmax of its own; they are merged at the end, in the warp by shuffles, then through shared memory.
// Memory traffic: the keys and values of the head once; they are written to present on the way. Queries and new keys
// are rotated as they are loaded.
#pragma once

#include "attention/arguments.cuh"
#include "common/early_start.cuh"

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

template <typename T>
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
  using State = FewRowsState<T>;
  extern __shared__ float memory[];
  onnxfuse::cuda::let_next_start();
  onnxfuse::cuda::wait_for_previous();
  const Problem<T>& p = a.problem;
  const int group = static_cast<int>(p.heads / p.kv_heads), rows = static_cast<int>(p.queries) * group;
  const int tiles = (rows + kRows - 1) / kRows, first = blockIdx.x % tiles * kRows;
  const int64_t head = blockIdx.x / tiles % p.kv_heads, b = blockIdx.x / tiles / p.kv_heads;
  const int part = blockIdx.y, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int feature = lane % lanes * kN;  // the lane's first
  const int groups = kWarp / lanes, owner = warp * groups + lane / lanes, step = kFewWarps * groups;
  const int past = past_of(a), keys = past + static_cast<int>(p.fresh), offset = keys - static_cast<int>(p.queries);
  // Parts are whole rounds of the loop, so with few keys the last parts may be empty.
  const int round = step * kDeep, rounds = (keys + round - 1) / round;
  const int each = (rounds + a.parts.count - 1) / a.parts.count * round, begin = part * each;
  const int end = min(begin + each, keys);
  const bool has_key = feature < p.key.size, has_value = feature < p.value.size;
  const HeadRows<T> all_keys(p.key, past, b, head), all_values(p.value, past, b, head);
  const bool copies = a.copies && first == 0;
  // The first row of present that this block writes; none if it writes nothing.
  constexpr int kNone = 0x7fffffff;
  const int moved_key = copies && has_key && p.key.present.data != nullptr ? (a.moves_key ? 0 : past) : kNone;
  const int moved_value = copies && has_value && p.value.present.data != nullptr ? (a.moves_value ? 0 : past) : kNone;
  const Mask mask = a.mask.of_batch(b);

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
      load_rotated<kN>(a.rotary, row_of(p.q, b, head * group + row % group, row / group), feature, b, row / group,
                       q[r]);
    }
    states[r].top = -INFINITY;
    states[r].total = past < 0 ? NAN : 0.0f;
  }
  // What is loaded of kDeep keys, from key `base` + owner on.
  struct Load {
    Vector<T> key[kDeep], value[kDeep];
    bool shown[kDeep];
  };
  // Keys from, up to but not including, to, whose rows are at keys_at + j * key_row and so on; they have yet to be
  // rotated if `fresh`.
  const auto attend = [&](int from, int to, const T* keys_at, int key_row, const T* values_at, int value_row,
                          bool fresh) {
    const auto fetch = [&](int base, Load* load) {
#pragma unroll
      for (int u = 0; u < kDeep; ++u) {
        const int j = base + u * step + owner;
        const bool exists = j < to;
        const T* const key = keys_at + static_cast<int64_t>(j) * key_row;
        load->key[u] = exists && has_key ? read(key) : Vector<T>{};
        if (fresh && exists && has_key) {
          float rotated[kN];
          load_rotated<kN>(a.rotary, key - feature, feature, b, j - past, rotated);
#pragma unroll
          for (int d = 0; d < kN; ++d) load->key[u].lane[d] = narrow<T>(rotated[d]);
        }
        load->value[u] = exists && has_value ? read(values_at + static_cast<int64_t>(j) * value_row) : Vector<T>{};
        load->shown[u] = exists && mask.shows_first(j);
      }
    };
    // All lanes of a warp go round equally often: the sums over lanes need them all.
    for (int base = from; base < to; base += round) {
      Load now;
      fetch(base, &now);
      if (moved_key < to || moved_value < to) {
#pragma unroll
        for (int u = 0; u < kDeep; ++u) {
          const int j = base + u * step + owner;
          if (j >= moved_key && j < to) write(row_of(p.key.present, b, head, j) + feature, now.key[u]);
          if (j >= moved_value && j < to) write(row_of(p.value.present, b, head, j) + feature, now.value[u]);
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float scores[kDeep], top = states[r].top;
#pragma unroll
        for (int u = 0; u < kDeep; ++u) {
          scores[u] = 0;
#pragma unroll
          for (int d = 0; d < kN; ++d) scores[u] += q[r][d] * widen(now.key[u].lane[d]);
        }
#pragma unroll
        for (int other = 1; other < kWarp; other *= 2) {
          if (other >= lanes) break;
#pragma unroll
          for (int u = 0; u < kDeep; ++u) scores[u] += __shfl_xor_sync(0xffffffff, scores[u], other);
        }
#pragma unroll
        for (int u = 0; u < kDeep; ++u) {
          scores[u] = queries[r].score(a, scores[u], base + u * step + owner, now.shown[u]);
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
          for (int d = 0; d < kN; ++d) states[r].sums[d] += w * widen(now.value[u].lane[d]);
        }
      }
    }
  };
  // The past and the new keys one after the other, by one copy of the loop.
  for (int fresh = 0; past >= 0 && fresh < 2; ++fresh) {
    const int from = fresh ? max(begin, past) : begin, to = fresh ? end : min(end, past);
    if (from >= to) continue;
    const int64_t back = fresh ? past : 0;  // new rows are counted from the first new one
    attend(from, to, (fresh ? all_keys.fresh - back * all_keys.fresh_row : all_keys.past) + feature,
           fresh ? all_keys.fresh_row : all_keys.past_row,
           (fresh ? all_values.fresh - back * all_values.fresh_row : all_values.past) + feature,
           fresh ? all_values.fresh_row : all_values.past_row, fresh != 0 && a.rotary.cos != nullptr);
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
  return (kFewWarps - 1) * kRows * lanes * static_cast<int64_t>(sizeof(FewRowsState<T>));
}

}  // namespace onnxfuse::attention::cuda
