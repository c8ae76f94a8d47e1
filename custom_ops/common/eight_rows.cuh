// Products of two to eight rows and matrices of 16-bit numbers, as when decoding several sequences: bound by reading
// the matrices, once. Compute capability 9.0.
//
// As in one_row.cuh a block owns a tile of columns and a slice of K, the blocks of a cluster own the slices of one
// tile, what is on its way to shared memory needs no registers, and the next kernel may start once the last loads are
// on their way. Here the tensor cores multiply: the columns of a matrix are the 16 rows of their A, the rows are the 8
// columns of their B. A warp owns 64 columns of the tile and every few'th 16 rows of the slice; it loads what it uses
// itself, so that warps wait for each other only before and after. Sums are added up in the block, then in the cluster,
// where each block finishes its share of the columns.
//
// A block makes its slice of h for itself. What the norm divides by is known to the whole cluster only at the end.
// Until then rows are divided by the root mean square of their slice, so that rounding h to T neither overflows nor
// loses what is small.
#pragma once

#include <algorithm>
#include <type_traits>

#include "common/one_row.cuh"

namespace onnxfuse::cuda {

inline constexpr int kEightRows = 8;      // of the tensor cores' B
inline constexpr int kEightDepth = 16;    // of a product of theirs
inline constexpr int kEightColumns = 64;  // of a warp

// Of kMatrices side by side: warps across the tile and along the slice.
template <int kMatrices_, int kAcross_, int kAlong_, int kRing_>
struct EightRowsShape {
  static constexpr int kMatrices = kMatrices_, kAcross = kAcross_, kAlong = kAlong_;
  static constexpr int kWarps = kAcross * kAlong, kThreads = kWarps * kWarp, kTile = kAcross * kEightColumns;
  static constexpr int kStep = kMatrices * kEightDepth * kEightColumns * 2;  // bytes of a warp
  static constexpr int kDeep = kRing_ / (kWarps * kStep), kRing = kDeep * kWarps * kStep;
  static constexpr int kPitch = kTile + 4;  // of sums in shared memory: lanes that store at once use all banks
  static_assert(kAlong * kMatrices * kEightRows * kPitch * 4 <= kRing && kDeep >= 2);
};

// Elements of shared memory that a row of h takes: neighbouring rows are four banks apart.
__host__ __device__ inline int eight_rows_pitch(int depth, int slices) {
  const int steps = (depth + kEightDepth - 1) / kEightDepth;
  return (steps + slices - 1) / slices * kEightDepth + 8;
}

// Columns of the tile that a block of the cluster finishes: whole vectors of float32.
__host__ __device__ inline int eight_rows_share(int tile, int slices) { return (tile / 4 + slices - 1) / slices * 4; }

// Writes elements `begin` to begin + count of a row of h to shared memory, without what the norm multiplies by, and
// zeros up to `padded`. Returns the sum of their squares, in every lane. For the lanes of a warp; in vectors.
template <typename T>
__device__ inline float make_slice(const T* x, const T* skip, T* sum, int count, int padded, T* h) {
  constexpr int kN = kLanes<T>, kEach = 4;  // loads of all are on their way at once
  const int lane = threadIdx.x % kWarp;
  float squares = 0;
  for (int first = lane * kN; first < padded; first += kEach * kWarp * kN) {
    uint4 own[kEach], added[kEach];
#pragma unroll
    for (int u = 0; u < kEach; ++u) {
      const int k = first + u * kWarp * kN;
      own[u] = k < count ? *reinterpret_cast<const uint4*>(x + k) : uint4{};
      added[u] = skip != nullptr && k < count ? *reinterpret_cast<const uint4*>(skip + k) : uint4{};
    }
#pragma unroll
    for (int u = 0; u < kEach; ++u) {
      const int k = first + u * kWarp * kN;
      if (k >= padded) break;
      auto& values = reinterpret_cast<Vector<T, kN>&>(own[u]);
      const auto& more = reinterpret_cast<const Vector<T, kN>&>(added[u]);
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        if (skip != nullptr) values.lane[j] = narrow<T>(widen(values.lane[j]) + widen(more.lane[j]));
        squares += widen(values.lane[j]) * widen(values.lane[j]);
      }
      if (sum != nullptr && k < count) *reinterpret_cast<uint4*>(sum + k) = own[u];
      *reinterpret_cast<uint4*>(h + k) = own[u];
    }
  }
  return warp_sum(squares);
}

// Multiplies what the same lanes wrote by a factor and the weights of the norm.
template <typename T, typename N>
__device__ inline void scale_slice(float factor, const N* weights, int count, T* h) {
  constexpr int kN = kLanes<T>;
  for (int k = static_cast<int>(threadIdx.x) % kWarp * kN; k < count; k += kWarp * kN) {
    float values[kN], scales[kN];
    load<kN>(h + k, values);
    load<kN>(weights + k, scales);
#pragma unroll
    for (int j = 0; j < kN; ++j) values[j] *= factor * scales[j];
    store<kN>(h + k, values);
  }
}

// `row` is the first of so many `rows` of x, skip and sum. Columns: as for one_row_cuda.
template <class Shape, typename T, class Columns>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    eight_rows_cuda(Row<T, T> row, int rows, Columns columns, bool waits_first) {
  constexpr int kMatrices = Shape::kMatrices, kAlong = Shape::kAlong, kTile = Shape::kTile, kDeep = Shape::kDeep;
  constexpr int kThreads = Shape::kThreads, kPitch = Shape::kPitch, kN = kLanes<T>;
  constexpr int kRowLanes = kEightColumns / kN, kAtOnce = kWarp / kRowLanes;  // lanes of a row, rows of a copy
  constexpr int kProducts = kEightColumns / 16;
  // The ring [warps][kDeep][kMatrices][16][64] T, later sums [kAlong][kMatrices][8][kPitch] of the block; then what the
  // block gets of all slices, [slices][kMatrices][8][share] and the squares [slices][8]; then by how much the sums of
  // each row are too small, [8]; h: [8][pitch] T; the norm's weights.
  extern __shared__ __align__(128) unsigned char memory[];
  const int slices = cluster_size(), slice = cluster_rank(), tile = blockIdx.x / slices;
  const int pitch = eight_rows_pitch(row.depth, slices), share = eight_rows_share(kTile, slices);
  float* const partial = reinterpret_cast<float*>(memory);
  float* const gathered = reinterpret_cast<float*>(memory + Shape::kRing);
  float* const squares = gathered + slices * kMatrices * kEightRows * share;
  float* const sizes = squares + slices * kEightRows;
  T* const h = reinterpret_cast<T*>(sizes + kEightRows);
  unsigned char* const norm_weights = reinterpret_cast<unsigned char*>(h + kEightRows * pitch);

  const int steps = (row.depth + kEightDepth - 1) / kEightDepth;
  const int first = static_cast<int>(static_cast<int64_t>(steps) * slice / slices);
  const int last = static_cast<int>(static_cast<int64_t>(steps) * (slice + 1) / slices);
  const int begin = first * kEightDepth, padded = (last - first) * kEightDepth, count = min(row.depth - begin, padded);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, across = warp / kAlong, along = warp % kAlong;

  enter_cluster();
  if (waits_first) wait_for_previous();
  if (row.norm_weight != nullptr) {
    const int bytes = row.norm_is_wide ? sizeof(float) : sizeof(T);
    const auto* const from = static_cast<const unsigned char*>(row.norm_weight) + static_cast<int64_t>(begin) * bytes;
    for (int i = threadIdx.x * 16; i < count * bytes; i += kThreads * 16) copy_async(norm_weights + i, from + i, true);
  }
  commit_copies();

  const int vector = (tile * kTile + across * kEightColumns) / kN + lane % kRowLanes, own_row = lane / kRowLanes;
  const bool is_inside = vector < columns.vectors;
  const T* from[kMatrices];
  int64_t stride[kMatrices];
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) {
    const Source<T> source = columns.source(min(vector, columns.vectors - 1), m);
    stride[m] = source.row;
    from[m] = source.data + (begin + along * kEightDepth + own_row) * stride[m];
  }
  // Rows of 128 bytes, whose vectors change places so that those of a column are in different banks.
  const uint32_t ring = shared_address(memory) + warp * kDeep * Shape::kStep;
  const ReadOnce once;
  int next = first + along, place = 0;  // what is loaded next, and where to
  const auto load_next = [&] {
    if (next < last) {
      const uint32_t to = ring + place * Shape::kStep;
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
        for (int u = 0; u < kEightDepth / kAtOnce; ++u) {
          const int r = own_row + u * kAtOnce, at = (m * kEightDepth + r) * kRowLanes + ((lane % kRowLanes) ^ r % 8);
          once.copy_async(to + at * 16, from[m] + u * kAtOnce * stride[m],
                          is_inside && next * kEightDepth + r < row.depth);
        }
        from[m] += kAlong * kEightDepth * stride[m];
      }
    }
    next += kAlong;
    if (next >= last) let_next_start();
    place = place + 1 < kDeep ? place + 1 : 0;
    commit_copies();
  };
#pragma unroll 1
  for (int u = 0; u < kDeep - 1; ++u) load_next();
  if (!waits_first) wait_for_previous();

  wait_for_copies<kDeep - 1>();
  __syncthreads();  // the norm's weights are there
  for (int r = warp; r < kEightRows; r += Shape::kWarps) {
    T* const own = h + r * pitch;
    const int64_t at = static_cast<int64_t>(r) * row.depth + begin;
    const bool is_row = r < rows, writes_sum = row.sum != nullptr && tile == 0;
    const float sum = make_slice(row.x + at, row.skip != nullptr ? row.skip + at : nullptr,
                                 writes_sum ? row.sum + at : nullptr, is_row ? count : 0, padded, own);
    if (row.norm_weight == nullptr || !is_row) continue;
    const float mean = sum / static_cast<float>(count), size = mean > 0 && mean < INFINITY ? sqrtf(mean) : 1.0f;
    if (row.norm_is_wide) {
      scale_slice(1 / size, reinterpret_cast<const float*>(norm_weights), count, own);
    } else {
      scale_slice(1 / size, reinterpret_cast<const T*>(norm_weights), count, own);
    }
    if (lane == 0) {
      sizes[r] = size;
      squares[slice * kEightRows + r] = sum;
    }
  }
  __syncthreads();

  float sums[kMatrices][kProducts][4] = {};
  const T* factors = h + lane / 4 * pitch + along * kEightDepth + lane % 4 * 2;
  int used = 0;
#pragma unroll 1
  for (int step = first + along; step < last; step += kAlong, factors += kAlong * kEightDepth) {
    wait_for_copies<kDeep - 2>();
    __syncwarp();
    load_next();  // to the place of the step before
    const uint32_t low = *reinterpret_cast<const uint32_t*>(factors);
    const uint32_t high = *reinterpret_cast<const uint32_t*>(factors + 8);
    const unsigned char* const weights = memory + (warp * kDeep + used) * Shape::kStep;
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
      for (int i = 0; i < kProducts; ++i) {
        const int r = lane % 8 + lane / 16 * 8,
                  at = (m * kEightDepth + r) * kRowLanes + ((2 * i + lane / 8 % 2) ^ lane % 8);
        uint32_t a[4];
        load_matrices_transposed(a, weights + at * 16);
        multiply_add<T>(sums[m][i], a, low, high);
      }
    }
    used = used + 1 < kDeep ? used + 1 : 0;
  }

  wait_for_copies<0>();
  __syncthreads();  // nobody needs the ring any more
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
    for (int i = 0; i < kProducts; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int r = lane % 4 * 2 + j % 2, column = across * kEightColumns + i * 16 + lane / 4 + j / 2 * 8;
        partial[((along * kMatrices + m) * kEightRows + r) * kPitch + column] = sums[m][i][j];
      }
    }
  }
  __syncthreads();
  wait_for_cluster();  // all of it runs
  const bool has_norm = row.norm_weight != nullptr;
  for (int i = threadIdx.x; i < kMatrices * rows * (kTile / 4); i += kThreads) {
    const int column = i % (kTile / 4) * 4, r = i / (kTile / 4) % rows, m = i / (kTile / 4) / rows;
    float4 sum{};
#pragma unroll
    for (int w = 0; w < kAlong; ++w) {
      const auto more =
          *reinterpret_cast<const float4*>(partial + ((w * kMatrices + m) * kEightRows + r) * kPitch + column);
      sum = {sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w};
    }
    const float size = has_norm ? sizes[r] : 1.0f;
    store_in(column / share, gathered + ((slice * kMatrices + m) * kEightRows + r) * share + column % share,
             {sum.x * size, sum.y * size, sum.z * size, sum.w * size});
  }
  if (has_norm) {
    for (int i = threadIdx.x; i < slices * rows; i += kThreads) {
      float* const to = squares + slice * kEightRows + i % rows;
      if (i / rows != slice) store_in(i / rows, to, *to);
    }
  }
  arrive_at_cluster();
  wait_for_cluster();
  const int own_columns = min(share, kTile - slice * share);
  for (int i = threadIdx.x; i < rows * share; i += kThreads) {
    const int r = i / share, column = tile * kTile + slice * share + i % share;
    if (i % share >= own_columns || column >= columns.vectors * kN) continue;
    float totals[kMatrices] = {}, total = 0;
    for (int s = 0; s < slices; ++s) {
      if (has_norm) total += squares[s * kEightRows + r];
#pragma unroll
      for (int m = 0; m < kMatrices; ++m)
        totals[m] += gathered[((s * kMatrices + m) * kEightRows + r) * share + i % share];
    }
    const float scale = has_norm ? 1.0f / sqrtf(total / static_cast<float>(row.depth) + row.epsilon) : 1.0f;
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) totals[m] *= scale;
    columns.finish(r, column, totals);
  }
}

template <class Shape, typename T>
int64_t eight_rows_bytes(const Row<T, T>& row, int64_t slices) {
  const int of_slices = static_cast<int>(slices), pitch = eight_rows_pitch(row.depth, of_slices);
  const int64_t floats = slices * kEightRows * (Shape::kMatrices * eight_rows_share(Shape::kTile, of_slices) + 1);
  const int of_norm = row.norm_weight == nullptr ? 0 : row.norm_is_wide ? 4 : 2;
  return Shape::kRing + (floats + kEightRows) * 4 + pitch * (kEightRows * 2 + of_norm);
}

// `constant` says whether the matrices are the same in every run.
template <class Shape, typename T, class Columns>
void launch_eight_rows(const Stream& stream, const char* name, const Row<T, T>& row, int64_t rows,
                       const Columns& columns, bool constant) {
  const int64_t tiles = divide_up(columns.vectors, Shape::kTile / kLanes<T>);
  int64_t slices = one_row_slices(tiles, row.depth);
  while (eight_rows_bytes<Shape>(row, slices) > kMostSharedBytes) ++slices;
  // No block shares a multiprocessor with another one.
  const int64_t bytes = std::max<int64_t>(eight_rows_bytes<Shape>(row, slices), kBytesAlone);
  stream.launch_clusters(name, true, eight_rows_cuda<Shape, T, Columns>, blocks(tiles * slices),
                         static_cast<unsigned>(slices), Shape::kThreads, static_cast<size_t>(bytes), row,
                         static_cast<int>(rows), columns, !(constant && row.has_constants));
}

template <int kMatrices>
using NarrowEightRows =
    std::conditional_t<kMatrices == 1, EightRowsShape<1, 4, 2, 128 << 10>, EightRowsShape<2, 2, 4, 160 << 10>>;
template <int kMatrices>
using WideEightRows =
    std::conditional_t<kMatrices == 1, EightRowsShape<1, 8, 1, 144 << 10>, EightRowsShape<2, 6, 2, 144 << 10>>;

// Wide tiles are quicker where they do not leave more multiprocessors without a block.
template <typename T, class Columns>
void eight_rows(const Stream& stream, const char* name, const Row<T, T>& row, int64_t rows, const Columns& columns,
                bool constant) {
  using Narrow = NarrowEightRows<Columns::kMatrices>;
  using Wide = WideEightRows<Columns::kMatrices>;
  const auto blocks_of = [&](int tile) { return one_row_blocks(columns.vectors, tile / kLanes<T>, row.depth); };
  if (blocks_of(Wide::kTile) >= blocks_of(Narrow::kTile)) {
    launch_eight_rows<Wide>(stream, name, row, rows, columns, constant);
  } else {
    launch_eight_rows<Narrow>(stream, name, row, rows, columns, constant);
  }
}

// Whether kernels start early here, and rows of x have vectors and fit the shared memory, whatever the columns.
template <int kMatrices, typename T>
bool fits_eight_rows(const Row<T, T>& row) {
  const bool has_vectors = row.depth > 0 && row.depth % kLanes<T> == 0 && is_aligned(row.x) && is_aligned(row.skip) &&
                           is_aligned(row.sum) && is_aligned(row.norm_weight);
  const int64_t bytes = std::max(eight_rows_bytes<NarrowEightRows<kMatrices>>(row, kMostClusterBlocks),
                                 eight_rows_bytes<WideEightRows<kMatrices>>(row, kMostClusterBlocks));
  return can_start_early() && has_vectors && bytes <= kMostSharedBytes;
}

}  // namespace onnxfuse::cuda
