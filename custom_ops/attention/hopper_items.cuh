// How hopper_rows.cuh cuts its work into items: some rows of one key-value head, and the keys that they see.
#pragma once

#include "attention/arguments.cuh"

namespace onnxfuse::attention::cuda {

inline constexpr int kHopperRows = 128, kHopperWarpRows = 16;

// The items, those with the most keys first. All rows of `heads_at_once` heads come before the next heads, so that
// their keys and values stay in the cache.
struct Items {
  int count, heads_at_once, tiles;  // the last two of batch times heads, and of rows
  bool whole_groups;                // a warp's rows are all heads of some queries: the copy engine moves q and y
};

// Where an item is, and which keys its rows see.
template <typename T>
struct Item {
  int b, head;
  int first, rows;             // the first row, and the rows of the head
  int begin, end;              // tiles begin..end-1
  int write_begin, write_end;  // the tiles that it writes to present: each is one item's, all of them about as many

  template <int kKeys>
  __device__ static Item of(const Arguments<T>& a, const Items& items, int index, int keys, int past) {
    const Problem<T>& p = a.problem;
    // All in 32 bits, in which alone division is cheap.
    const unsigned kv_heads = static_cast<unsigned>(p.kv_heads), heads = static_cast<unsigned>(p.batch) * kv_heads,
                   at_once = items.heads_at_once, tiles = items.tiles;
    const unsigned before = index / (at_once * tiles) * at_once, here = min(heads - before, at_once),
                   rest = index - before * tiles, tile = rest / here, head = before + rest - tile * here;
    Item item;
    item.b = static_cast<int>(head / kv_heads);
    item.head = static_cast<int>(head) - item.b * static_cast<int>(kv_heads);
    const int group = static_cast<int>(p.heads) / static_cast<int>(kv_heads);
    item.rows = static_cast<int>(p.queries) * group;
    item.first = static_cast<int>(tiles - 1 - tile) * kHopperRows;
    const int offset = keys - static_cast<int>(p.queries);
    const auto query_of = [&](int row) { return group == 1 ? row : row / group; };
    const int low = query_of(item.first), high = query_of(min(item.first + kHopperRows, item.rows) - 1);
    const int window = static_cast<int>(min(p.window, int64_t{0x3fffffff}));
    // The tiles up to the last that a query sees.
    const auto tiles_of = [&](int query) {
      return ((p.causal ? max(min(keys, query + offset + 1), 0) : keys) + kKeys - 1) / kKeys;
    };
    item.begin = (window > 0 ? max(low + offset - window + 1, 0) : 0) / kKeys;
    item.end = past < 0 ? item.begin : max(tiles_of(high), item.begin);
    const int64_t number = item.first / kHopperRows;
    if (p.causal) {
      item.write_begin = number == 0 ? 0 : tiles_of(query_of(item.first - 1));
      item.write_end = item.end;
    } else {
      item.write_begin = static_cast<int>(item.end * number / items.tiles);
      item.write_end = static_cast<int>(item.end * (number + 1) / items.tiles);
    }
    return item;
  }
};

}  // namespace onnxfuse::attention::cuda
