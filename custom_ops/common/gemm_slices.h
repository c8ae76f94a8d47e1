// The weights of a block as slices along K, in the order in which they are multiplied.
#pragma once

#include <algorithm>

#include "common/gemm.h"

namespace onnxfuse {

// Rows first .. first + depth - 1 of a panel.
template <typename W>
struct Slice {
  const Weight* weight;
  int64_t panel, first, depth;
  float* sums;  // of the block's first row by this panel

  const W* data() const {
    const int64_t offset =
        weight->packed ? (panel * weight->depth + first) * kPanel : first * weight->columns + panel * kPanel;
    return static_cast<const W*>(weight->data) + offset;
  }
  int64_t stride() const { return weight->packed ? kPanel : weight->columns; }
  int64_t columns() const { return std::min(kPanel, weight->columns - panel * kPanel); }
  const BFloat16* scales() const { return weight->scales + (panel * weight->depth + first) / kScaledRows * kPanel; }
  bool is_last() const { return first + depth == weight->depth; }
};

// Calls visit(slice, next) for all slices of `depth` rows: as many of them as `group`, of which the second-level cache
// holds A beside the sums, by all panels before the next ones. Behind the last one comes what the next block starts
// with, which this thread is likely to get.
template <typename W, class Visit>
void for_each_slice(const GemmBlock& block, const Weight* weights, int64_t count, int64_t depth, int64_t group,
                    const Visit& visit) {
  const int64_t end = block.first_panel + block.panels, whole = weights->depth;
  const auto at = [&](int64_t weight, int64_t panel, int64_t first) {
    return Slice<W>{&weights[weight], panel, first, std::min(depth, whole - first),
                    block.row(weight, panel, block.first_row)};
  };
  Slice<W> slice = at(0, block.first_panel, 0);
  bool begun = false;
  const auto then = [&](const Slice<W>& next) {
    if (begun) visit(slice, next);
    begun = true;
    slice = next;
  };
  const int64_t rows = std::max<int64_t>(group, 1) * depth;
  for (int64_t first = 0; first < whole; first += rows) {
    for (int64_t weight = 0; weight < count; ++weight) {
      for (int64_t panel = block.first_panel; panel < end; ++panel) {
        for (int64_t row = first; row < std::min(whole, first + rows); row += depth) then(at(weight, panel, row));
      }
    }
  }
  then(at(0, std::min(end, weights->panels() - 1), 0));
}

}  // namespace onnxfuse
