// The host's side of hopper_products.cuh.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <type_traits>

#include "common/tensor_map.h"
#include "gated_mlp/hopper_products.cuh"

namespace onnxfuse::mlp::cuda {

// The columns of a tile with which the slowest cluster has the least to do; at a draw the last of them.
template <typename T>
int best_columns(int64_t rows, const PlainProduct<T>* products, int count, int weights,
                 std::initializer_list<int> choices) {
  constexpr int64_t kBeside = 16;  // what a tile costs beside its products, in columns of them
  const int64_t clusters = onnxfuse::cuda::clusters_at_once(kHopperBlocks);
  int best = 0;
  int64_t least = 0;
  for (const int columns : choices) {
    int64_t units = 0;
    for (int i = 0; i < count; ++i) units += divide_up(products[i].columns, columns);
    units *= divide_up(rows, kHopperRows * kHopperBlocks);
    const int64_t cost = divide_up(units, clusters) * (weights * columns + kBeside);
    if (best > 0 && cost > least) continue;
    best = columns;
    least = cost;
  }
  return best;
}

template <int kColumns, bool kGated, Activation kActivation, typename T>
void launch_hopper_products(const onnxfuse::cuda::Stream& stream, const T* a, int64_t rows, int64_t depth,
                            const PlainProduct<T>* products, int count) {
  constexpr int64_t kMost = 0x7fffffff - kHopperRows * kHopperBlocks;
  const auto map = [&](const void* data, int64_t lines, int64_t columns, int tile) {
    require(lines <= kMost && columns <= kMost, "a matrix [", lines, ",", columns, "] is too large");
    return onnxfuse::cuda::tensor_map(data, 1, 1, lines, columns, lines * columns, lines * columns, columns, tile);
  };
  HopperProducts<T> p{};
  p.a = map(a, rows, depth, kHopperRows);
  int64_t tiles = 0;
  for (int i = 0; i < kMostWeights; ++i) {
    if (i < count) {
      const PlainProduct<T>& product = products[i];
      p.weights[i] = map(product.weight, depth, product.columns, kHopperSlice / kHopperBlocks);
      p.bias[i] = product.bias;
      p.out[i] = product.y;
      p.columns[i] = static_cast<int>(product.columns);
      if (!kGated || i == 0) tiles += divide_up(product.columns, kColumns);
    }
    p.ends[i] = static_cast<int>(tiles);
  }
  const int64_t pairs = divide_up(rows, kHopperRows * kHopperBlocks), units = pairs * tiles;
  const int64_t clusters = std::min<int64_t>(units, onnxfuse::cuda::clusters_at_once(kHopperBlocks));
  require(units <= kMost / kHopperGroup, "products of ", rows, " rows are too large");
  p.rows = static_cast<int>(rows);
  p.depth = static_cast<int>(depth);
  p.pairs = static_cast<int>(pairs);
  p.tiles = static_cast<int>(tiles);
  stream.launch_clusters("products", true, products_cuda_hopper<T, kColumns, kGated, kActivation>,
                         static_cast<unsigned>(kHopperBlocks * clusters), kHopperBlocks, kHopperThreads,
                         HopperShape<kColumns, kGated>::kAll, p);
}

template <typename T>
void launch_multiply(const onnxfuse::cuda::Stream& stream, const T* a, int64_t rows, int64_t depth,
                     const PlainProduct<T>* products, int count) {
  const auto launch = [&](auto columns) {
    launch_hopper_products<decltype(columns)::value, false, Activation::kSilu>(stream, a, rows, depth, products, count);
  };
  switch (best_columns(rows, products, count, 1, {128, 192, 256})) {
    case 128:
      return launch(std::integral_constant<int, 128>{});
    case 192:
      return launch(std::integral_constant<int, 192>{});
    default:
      return launch(std::integral_constant<int, 256>{});
  }
}

template <typename T>
void launch_gate(const onnxfuse::cuda::Stream& stream, const T* a, int64_t rows, int64_t depth,
                 const PlainProduct<T>& gate, const PlainProduct<T>& up, Activation activation) {
  const PlainProduct<T> both[] = {gate, up};
  const bool whole_slabs = best_columns(rows, both, 1, 2, {112, 128}) == 128;
  const auto launch = [&](auto kind) {
    constexpr Activation kActivation = decltype(kind)::value;
    if (whole_slabs) {
      launch_hopper_products<128, true, kActivation>(stream, a, rows, depth, both, 2);
    } else {
      launch_hopper_products<112, true, kActivation>(stream, a, rows, depth, both, 2);
    }
  };
  switch (activation) {
    case Activation::kSilu:
      return launch(std::integral_constant<Activation, Activation::kSilu>{});
    case Activation::kGelu:
      return launch(std::integral_constant<Activation, Activation::kGelu>{});
    case Activation::kGeluTanh:
      return launch(std::integral_constant<Activation, Activation::kGeluTanh>{});
  }
}

}  // namespace onnxfuse::mlp::cuda
