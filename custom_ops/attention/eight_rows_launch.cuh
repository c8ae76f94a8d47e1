// The host's side of eight_rows.cuh.
#pragma once

#include <algorithm>

#include "attention/eight_rows.cuh"

namespace onnxfuse::attention::cuda {

template <typename T>
void launch_eight_rows(const onnxfuse::cuda::Stream& stream, const Arguments<T>& a) {
  const Problem<T>& p = a.problem;
  const bool has_clusters = onnxfuse::cuda::can_start_early();
  const int64_t row_tiles = divide_up(p.rows(), kEightRows), units = p.batch * p.kv_heads * row_tiles;
  const int64_t keys = a.room > 0 ? std::min(a.room, a.mask.length) : p.keys();
  const int count = static_cast<int>(std::min<int64_t>(p.rows(), kEightRows));
  const bool is_plain = p.softcap <= 0 && p.bias.single == nullptr && p.bias.narrow == nullptr;
  for_head_size<64, 128, 256>(std::max(p.key.size, p.value.size), [&](auto most) {
    constexpr int kSize = decltype(most)::value;
    EightRows shape{1, static_cast<int>(p.group()), static_cast<int>(p.rows())};
    // As many as run at once, and have a tile for each warp.
    const int64_t useful = divide_up(keys, kEightWarps * kTileKeys);
    for (int s = 2; has_clusters && s <= std::min<int64_t>(useful, onnxfuse::cuda::kMostClusterBlocks); ++s) {
      if (units <= onnxfuse::cuda::clusters_at_once(s, kEightBlocks<kSize>)) shape.slices = s;
    }
    const int value_size = static_cast<int>(p.value.size);
    const int bytes = first_bytes<T, kSize>(count, value_size) + shape.slices * partial_bytes(count, value_size);
    const dim3 grid(onnxfuse::cuda::blocks(shape.slices * a.parts.count * row_tiles), static_cast<unsigned>(p.kv_heads),
                    static_cast<unsigned>(p.batch));
    const auto kernel = is_plain && p.key.size == kSize && p.value.size == kSize
                            ? attention_cuda_eight_rows<T, kSize, true>
                            : attention_cuda_eight_rows<T, kSize, false>;
    stream.launch_clusters("Attention", has_clusters, kernel, grid, static_cast<unsigned>(shape.slices), kEightThreads,
                           static_cast<size_t>(bytes), a, shape);
  });
}

}  // namespace onnxfuse::attention::cuda
