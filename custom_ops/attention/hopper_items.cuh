// How hopper_rows.cuh cuts its work into items: some rows of one key-value head, and the keys that they see.
#pragma once

#include "attention/arguments.cuh"

namespace onnxfuse::attention::cuda {

inline constexpr int kHopperRows = 128;

// The items, those with the most keys first. All rows of `heads_at_once` heads come before the next heads, so that
// their keys and values stay in the cache.
struct Items {
  int64_t count;
  int heads_at_once, tiles;  // of batch times heads; of rows
};

// Where an item is, and which keys its rows see.
template <typename T>
struct Item {
  int64_t b, head;
  int first, rows;             // the first row, and the rows of the head
  int begin, end;              // tiles begin..end-1
  int write_begin, write_end;  // the tiles that it writes to present: each is one item's, all of them about as many

  template <int kKeys>
  __device__ static Item of(const Arguments<T>& a, const Items& items, int64_t index, int keys, int past) {
    const Problem<T>& p = a.problem;
    const int64_t heads = p.batch * p.kv_heads,
                  section = index / (static_cast<int64_t>(items.heads_at_once) * items.tiles);
    const int64_t before = section * items.heads_at_once;
    const int here = static_cast<int>(min(heads - before, static_cast<int64_t>(items.heads_at_once)));
    const int rest = static_cast<int>(index - before * items.tiles);
    Item item;
    const int64_t head = before + rest % here;
    item.b = head / p.kv_heads;
    item.head = head % p.kv_heads;
    const int group = static_cast<int>(p.heads / p.kv_heads);
    item.rows = static_cast<int>(p.queries) * group;
    item.first = (items.tiles - 1 - rest / here) * kHopperRows;
    const int offset = keys - static_cast<int>(p.queries);
    const int low = item.first / group, high = (min(item.first + kHopperRows, item.rows) - 1) / group;
    const int window = static_cast<int>(min(p.window, int64_t{0x3fffffff}));
    // The tiles up to the last that a query sees.
    const auto tiles_of = [&](int query) {
      return ((p.causal ? max(min(keys, query + offset + 1), 0) : keys) + kKeys - 1) / kKeys;
    };
    item.begin = (window > 0 ? max(low + offset - window + 1, 0) : 0) / kKeys;
    item.end = past < 0 ? item.begin : max(tiles_of(high), item.begin);
    const int64_t number = item.first / kHopperRows;
    if (p.causal) {
      item.write_begin = number == 0 ? 0 : tiles_of((item.first - 1) / group);
      item.write_end = item.end;
    } else {
      item.write_begin = static_cast<int>(item.end * number / items.tiles);
      item.write_end = static_cast<int>(item.end * (number + 1) / items.tiles);
    }
    return item;
  }
};

}  // namespace onnxfuse::attention::cuda
