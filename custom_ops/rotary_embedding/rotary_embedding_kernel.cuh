// RotaryEmbedding on raw pointers, see rotary_embedding.h. A thread owns one vector of pairs of one head, or as many of
// the features that are only copied; 2 * sizeof(T) bytes of memory traffic an element, the table stays in the caches.
#pragma once

#include "common/device.cuh"
#include "common/early_start.cuh"
#include "rotary_embedding/rotary_embedding.h"

namespace onnxfuse::cuda {

inline constexpr unsigned kRotaryThreads = 256;

// A block works on one group (blockIdx.x). kLanes is what one access moves: the pairs of a thread are kLanes if the
// features of a pair lie apart, kLanes / 2 if they are neighbours; 1 for the plain version.
template <typename T, typename W, int kLanes, bool kInterleaved>
__global__ void __launch_bounds__(kRotaryThreads)
    rotary_embedding_cuda(const T* x, const W* cos, const W* sin, T* y, RotaryLayout layout, int units) {
  let_next_start();
  wait_for_previous();
  constexpr int kPairs = kInterleaved && kLanes > 1 ? kLanes / 2 : kLanes;
  const int d = static_cast<int>(layout.head_size), half = static_cast<int>(layout.rotary_dim) / 2;
  const int64_t unit = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x, vector = unit / units;
  if (vector >= layout.group_size) return;
  const int first = static_cast<int>(unit % units) * kPairs;
  const int64_t group = blockIdx.x, offset = (group * layout.group_size + vector) * d;
  x += offset;
  y += offset;
  if (first >= half) {
    const int begin = 2 * first, end = min(begin + 2 * kPairs, d);
    for (int i = begin; i < end; ++i) y[i] = x[i];
    return;
  }
  const int64_t row = group / layout.groups_a_batch * layout.table_batch_step +
                      group % layout.groups_a_batch * layout.table_group_step + vector * layout.table_step;
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

template <typename T, typename W>
void rotary_embedding(const Stream& stream, const T* x, const W* cos, const W* sin, T* y, const RotaryLayout& layout,
                      int64_t groups) {
  const int64_t d = layout.head_size, half = layout.rotary_dim / 2;
  require(d <= 0x7fffffff, "the head size is ", d, ", expected less than 2^31");
  // Every access then starts at a multiple of 16 bytes; tables of float32 are read with several.
  const bool vectors = d % kLanes<T> == 0 && half % kLanes<T> == 0 && is_aligned(x) && is_aligned(y) &&
                       is_aligned(cos) && is_aligned(sin);
  const int64_t pairs = !vectors ? 1 : layout.interleaved ? kLanes<T> / 2 : kLanes<T>;
  const int64_t units = divide_up(d, 2 * pairs);
  const dim3 grid(blocks(groups), static_cast<unsigned>(divide_up(layout.group_size * units, kRotaryThreads)));
  require(divide_up(layout.group_size * units, kRotaryThreads) <= 0xffff, "x has ", layout.group_size,
          " vectors of one head, too many for one run on CUDA");
  const auto kernel =
      layout.interleaved
          ? (vectors ? rotary_embedding_cuda<T, W, kLanes<T>, true> : rotary_embedding_cuda<T, W, 1, true>)
          : (vectors ? rotary_embedding_cuda<T, W, kLanes<T>, false> : rotary_embedding_cuda<T, W, 1, false>);
  stream.launch_early("RotaryEmbedding", kernel, grid, kRotaryThreads, 0, x, cos, sin, y, layout,
                      static_cast<int>(units));
}

}  // namespace onnxfuse::cuda
