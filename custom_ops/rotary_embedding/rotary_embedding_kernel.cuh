// RotaryEmbedding on raw pointers, see rotary_embedding.h. A thread owns one vector of pairs of one head, or as many of
// the features that are only copied; 2 * sizeof(T) bytes of memory traffic an element, the table stays in the caches.
#pragma once

#include <algorithm>

#include "common/device.cuh"
#include "common/early_start.cuh"
#include "rotary_embedding/rotary_embedding.h"

namespace onnxfuse::cuda {

inline constexpr unsigned kRotaryThreads = 256;

// y: x rotated, so many groups of vectors.
template <typename T>
struct Rotated {
  const T* x;
  T* y;
  RotaryLayout layout;
  int64_t groups;
};

// What is rotated by the same tables at once.
template <typename T>
struct RotatedTogether {
  Rotated<T> tensors[2];
};

// A block works on one group (blockIdx.x) of a tensor (blockIdx.z), whose heads have as many units. kLanes is what one
// access moves: the pairs of a thread are kLanes if the features of a pair lie apart, kLanes / 2 if they are
// neighbours; 1 for the plain version.
template <typename T, typename W, int kLanes, bool kInterleaved>
__global__ void __launch_bounds__(kRotaryThreads)
    rotary_embedding_cuda(const __grid_constant__ RotatedTogether<T> together, const W* cos, const W* sin,
                          unsigned units) {
  let_next_start();
  wait_for_previous();
  const RotaryLayout& layout = together.tensors[blockIdx.z].layout;
  constexpr int kPairs = kInterleaved && kLanes > 1 ? kLanes / 2 : kLanes;
  const int d = static_cast<int>(layout.head_size), half = static_cast<int>(layout.rotary_dim) / 2;
  // In 32 bits, in which alone division is cheap.
  const unsigned group = blockIdx.x, unit = blockIdx.y * blockDim.x + threadIdx.x, vector = unit / units;
  if (group >= together.tensors[blockIdx.z].groups || vector >= layout.group_size) return;
  const int first = static_cast<int>(unit - vector * units) * kPairs;
  const int64_t offset = (group * layout.group_size + vector) * d;
  const T* const x = together.tensors[blockIdx.z].x + offset;
  T* const y = together.tensors[blockIdx.z].y + offset;
  if (first >= half) {
    const int begin = 2 * first, end = min(begin + 2 * kPairs, d);
    for (int i = begin; i < end; ++i) y[i] = x[i];
    return;
  }
  const unsigned groups_a_batch = static_cast<unsigned>(layout.groups_a_batch), batch = group / groups_a_batch;
  const int64_t row = batch * layout.table_batch_step + (group - batch * groups_a_batch) * layout.table_group_step +
                      vector * layout.table_step;
  const bool full_table = layout.table_width == layout.rotary_dim;
  cos += row;
  sin += row;
  if constexpr (!kInterleaved) {
    float a[kPairs], b[kPairs], c[kPairs], s[kPairs], left[kPairs], right[kPairs];
    load<kPairs>(x + first, a);
    load<kPairs>(x + half + first, b);
    load<kPairs>(cos + first, c);
    load<kPairs>(sin + first, s);
#pragma unroll
    for (int j = 0; j < kPairs; ++j) left[j] = a[j] * c[j] - b[j] * s[j];
    if (full_table) {
      load<kPairs>(cos + half + first, c);
      load<kPairs>(sin + half + first, s);
    }
#pragma unroll
    for (int j = 0; j < kPairs; ++j) right[j] = b[j] * c[j] + a[j] * s[j];
    store<kPairs>(y + first, left);
    store<kPairs>(y + half + first, right);
  } else {
    float v[2 * kPairs], c[2 * kPairs], s[2 * kPairs];
    // A pair of the plain version may lie at an odd place.
    if constexpr (kLanes == 1) {
      v[0] = widen(x[2 * first]);
      v[1] = widen(x[2 * first + 1]);
    } else {
      load<2 * kPairs>(x + 2 * first, v);
    }
#pragma unroll
    for (int j = 0; j < 2 * kPairs; ++j) {
      const int entry = full_table ? 2 * first + j : first + j / 2;
      c[j] = widen(cos[entry]);
      s[j] = widen(sin[entry]);
    }
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const float even = v[2 * j], odd = v[2 * j + 1];
      v[2 * j] = even * c[2 * j] - odd * s[2 * j];
      v[2 * j + 1] = odd * c[2 * j + 1] + even * s[2 * j + 1];
    }
    if constexpr (kLanes == 1) {
      y[2 * first] = narrow<T>(v[0]);
      y[2 * first + 1] = narrow<T>(v[1]);
    } else {
      store<2 * kPairs>(y + 2 * first, v);
    }
  }
}

// Rotates `first`, and `second` if it has groups, whose heads are alike, by tables as `layout` says.
template <typename T, typename W>
void rotary_embedding(const Stream& stream, const W* cos, const W* sin, const Rotated<T>& first,
                      const Rotated<T>& second = {}) {
  const int64_t d = first.layout.head_size, half = first.layout.rotary_dim / 2;
  require(d <= 0x7fffffff, "the head size is ", d, ", expected less than 2^31");
  // Every access then starts at a multiple of 16 bytes; tables of float32 are read with several.
  const auto aligned = [](const Rotated<T>& rotated) { return is_aligned(rotated.x) && is_aligned(rotated.y); };
  const bool vectors = d % kLanes<T> == 0 && half % kLanes<T> == 0 && aligned(first) && aligned(second) &&
                       is_aligned(cos) && is_aligned(sin);
  const bool interleaved = first.layout.interleaved;
  const int64_t pairs = !vectors ? 1 : interleaved ? kLanes<T> / 2 : kLanes<T>;
  const int64_t units = divide_up(d, 2 * pairs), size = std::max(first.layout.group_size, second.layout.group_size);
  const int64_t planes = divide_up(size * units, kRotaryThreads);
  require(planes <= 0xffff, "x has ", size, " vectors of one head, too many for one run on CUDA");
  const dim3 grid(blocks(std::max(first.groups, second.groups)), static_cast<unsigned>(planes),
                  second.groups > 0 ? 2 : 1);
  const auto kernel =
      interleaved ? (vectors ? rotary_embedding_cuda<T, W, kLanes<T>, true> : rotary_embedding_cuda<T, W, 1, true>)
                  : (vectors ? rotary_embedding_cuda<T, W, kLanes<T>, false> : rotary_embedding_cuda<T, W, 1, false>);
  stream.launch_early("RotaryEmbedding", kernel, grid, kRotaryThreads, 0, RotatedTogether<T>{{first, second}}, cos, sin,
                      static_cast<unsigned>(units));
}

}  // namespace onnxfuse::cuda
