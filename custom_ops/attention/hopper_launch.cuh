// The host's side of hopper_rows.cuh.
#pragma once

#include <algorithm>
#include <type_traits>

#include "attention/hopper_rows.cuh"

namespace onnxfuse::attention::cuda {

template <typename T>
void launch_hopper_rows(const onnxfuse::cuda::Stream& stream, const Arguments<T>& a) {
  using onnxfuse::cuda::device_attribute;
  const Problem<T>& p = a.problem;
  // Keys and values that the cache of the device keeps while all their rows are worked on.
  constexpr int64_t kCached = 40 << 20;
  const int64_t heads = p.batch * p.kv_heads, keys = a.room > 0 ? std::min(a.room, a.mask.length) : p.keys();
  const int64_t head_bytes = std::max<int64_t>(keys * (p.key.size + p.value.size) * sizeof(T), 1);
  Items items{};
  items.tiles = static_cast<int>(divide_up(p.rows(), kHopperRows));
  const int64_t sections = divide_up(heads, std::clamp<int64_t>(kCached / head_bytes, 1, heads));
  items.heads_at_once = static_cast<int>(divide_up(heads, sections));
  items.whole_groups = kHopperWarpRows % p.group() == 0;
  items.count = static_cast<int>(onnxfuse::cuda::blocks(heads * items.tiles));
  const int grid = std::min(items.count, device_attribute(cudaDevAttrMultiProcessorCount));
  const auto launch = [&](auto most, auto plain) {
    constexpr int kSize = decltype(most)::value;
    const auto map = [&](const auto& rows, int64_t count, int64_t size) {
      return onnxfuse::cuda::tensor_map(rows.data, p.batch, p.kv_heads, count, size, rows.batch, rows.head, rows.row,
                                        kHopperKeys<kSize>);
    };
    const auto maps_of = [&](const Cache<T>& cache) {
      return CacheMaps{map(cache.past, a.room > 0 ? a.room : p.past, cache.size), map(cache.fresh, p.fresh, cache.size),
                       map(cache.present, a.room > 0 ? a.room : p.keys(), cache.size)};
    };
    const auto grouped = [&](const auto& rows, int64_t size, int rows_of_tile) {
      return items.whole_groups ? onnxfuse::cuda::grouped_tensor_map(rows.data, p.batch, p.kv_heads, p.queries,
                                                                     p.group(), size, rows.batch, p.group() * rows.head,
                                                                     rows.row, rows.head, rows_of_tile)
                                : CUtensorMap{};
    };
    const Maps maps{maps_of(p.key), maps_of(p.value), grouped(p.q, p.key.size, kHopperRows),
                    grouped(p.y, p.value.size, kHopperWarpRows)};
    stream.launch_early("Attention", attention_cuda_hopper_rows<T, kSize, decltype(plain)::value>,
                        static_cast<unsigned>(grid), kHopperThreads, HopperMemory<T, kSize>::kBytes, a, items, maps);
  };
  const int64_t size = std::max(p.key.size, p.value.size);
  if (has_plain_scores(p)) {
    for_head_size<64, 96, 128, 256>(size, [&](auto most) { launch(most, std::true_type{}); });
  } else {
    for_head_size<128, 256>(size, [&](auto most) { launch(most, std::false_type{}); });
  }
}

}  // namespace onnxfuse::attention::cuda
