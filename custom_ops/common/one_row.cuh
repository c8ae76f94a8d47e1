// Products of one row and matrices, as when decoding: bound by reading the matrices, once. Compute capability 9.0.
//
// A block owns a tile of columns and a slice of K; the blocks of a cluster own the slices of one tile. A thread owns
// one vector of 16 bytes of every few rows and has several of them on their way, each to a place of its own in shared
// memory, so that they need no registers. Sums are added up in the block through shared memory, and sent to the
// cluster's first block, which finishes the columns. A block makes its slice of the row h for itself: x, or x + skip
// rounded to T, times the weight of the norm; what the norm divides by is added up along with the sums. The first loads
// start before the kernel waits for the one that writes x, see early_start.cuh.
//
// What makes it quick on an H200, seen in a chain of a Llama's products of fp16: a tile is 512 bytes wide or more (the
// memory gave 2.7 TB/s at 64 bytes, 4.0 at 256, 4.3 at 512); what is read once leaves the second-level cache first; and
// there are as many blocks as run at once if each has a multiprocessor for itself, which each gets. Blocks that share
// one do so unevenly where a kernel starts early, as it gets what the one before has left, and that costs more than
// what the few multiprocessors without a block could do. For the same reason the next kernel may start only once the
// last loads are on their way: its own would come in between. What a block loads first is on its way long before the
// row is there; a little more is fetched into the second-level cache until then, and much more would delay the row.
#pragma once

#include "common/cluster.cuh"
#include "common/early_start.cuh"
#include "common/matrix.cuh"

namespace onnxfuse::cuda {

// Of products by kMatrices matrices side by side: vectors of a tile, threads, vectors that a thread has on their way,
// and those fetched ahead of them. One matrix is read quicker through a smaller ring.
template <int kMatrices_, int kTile_, int kThreads_>
struct OneRowShape {
  static constexpr int kMatrices = kMatrices_, kTile = kTile_, kThreads = kThreads_, kRows = kThreads / kTile;
  static constexpr int kStep = kMatrices * kThreads * 16, kRing = (kMatrices == 1 ? 64 : 96) << 10;  // bytes
  static constexpr int kDeep = kRing / kStep, kAhead = (16 << 10) / kStep;
  static_assert(kThreads % kTile == 0 && kThreads % kWarp == 0 && kAhead > 0);
};

// Where the row h: [K] comes from.
template <typename T, typename A>
struct Row {
  const A* x;
  int depth;                          // K
  const T* skip = nullptr;            // null: nothing is added
  T* sum = nullptr;                   // gets x + skip, if not null
  const void* norm_weight = nullptr;  // null: no norm
  bool norm_is_wide = false;          // its dtype is float32, not T
  float epsilon = 0;
  bool has_constants = true;  // the weights of the norm are the same in every run

  Row(const A* x, int64_t depth) : x(x), depth(static_cast<int>(depth)) {}

  // What is done to x before the product, as the nodes say it.
  void enters(const T* skip_, T* sum_, const AnyTensor& norm_weight_, bool constant_norm, float epsilon_) {
    skip = skip_;
    sum = sum_;
    norm_weight = norm_weight_.data;
    norm_is_wide = norm_weight_.dtype == DType::kFloat32;
    epsilon = epsilon_;
    has_constants = constant_norm || !norm_weight_.present;
  }
};

// Where a vector of columns starts, and how far its rows are apart.
template <typename W>
struct Source {
  const W* data;
  int64_t row;

  __device__ Source(const Matrix<W>& matrix, int64_t column) : data(matrix.at(0, column)), row(matrix.row) {}
};

// Writes the elements of h from `begin` on to shared memory, without the division by the norm, and zeros from `count`
// to `padded`. Returns the thread's share of the sum of squares that the norm needs.
template <int kThreads, typename T, typename A>
__device__ inline float make_row(const Row<T, A>& row, int begin, int count, int padded, bool writes_sum, float* h) {
  constexpr int kEach = 4;  // loads of all are on their way at once
  float squares = 0;
  for (int k = threadIdx.x; k < padded; k += kEach * kThreads) {
    float x[kEach], skip[kEach], weight[kEach];
#pragma unroll
    for (int u = 0; u < kEach; ++u) {
      const int at = begin + min(k + u * kThreads, count - 1);
      x[u] = widen(row.x[at]);
      skip[u] = row.skip != nullptr ? widen(row.skip[at]) : 0.0f;
      weight[u] = row.norm_weight == nullptr ? 1.0f
                  : row.norm_is_wide         ? static_cast<const float*>(row.norm_weight)[at]
                                             : widen(static_cast<const T*>(row.norm_weight)[at]);
    }
#pragma unroll
    for (int u = 0; u < kEach; ++u) {
      const int i = k + u * kThreads;
      if (i >= padded) break;
      if (row.skip != nullptr) {
        const T sum = narrow<T>(x[u] + skip[u]);
        if (writes_sum && i < count) row.sum[begin + i] = sum;
        x[u] = widen(sum);
      }
      if (i >= count) x[u] = weight[u] = 0;
      squares += x[u] * x[u];
      h[i] = x[u] * weight[u];
    }
  }
  return squares;
}

// Columns: what is multiplied, kMatrices of equal size side by side. `vectors` is how many vectors of columns there are
// of each; source(vector, matrix) gives the place of a vector; finish(row, column, sums) takes those of a column of
// each. waits_first: the matrices are not constant.
template <class Shape, typename W, typename T, typename A, class Columns>
__global__ void __launch_bounds__(Shape::kThreads, 1024 / Shape::kThreads)
    one_row_cuda(Row<T, A> row, Columns columns, bool waits_first) {
  constexpr int kN = kLanes<W>, kMatrices = Shape::kMatrices, kTile = Shape::kTile, kColumns = kTile * kN;
  constexpr int kRows = Shape::kRows, kThreads = Shape::kThreads, kDeep = Shape::kDeep;
  // The ring [kDeep][kMatrices][threads] of vectors, later sums [kRows][kMatrices][kColumns] of the block; then what
  // the first block gets of all slices, [slices][kMatrices][kColumns] and their squares; then h.
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ uint64_t has_sums;
  const int slices = cluster_size(), slice = cluster_rank(), tile = blockIdx.x / slices;
  float* const partial = reinterpret_cast<float*>(memory);
  float* const gathered = reinterpret_cast<float*>(memory + Shape::kRing);
  float* const gathered_squares = gathered + slices * kMatrices * kColumns;
  float* const h = gathered_squares + slices;
  const int begin = static_cast<int>(static_cast<int64_t>(row.depth) * slice / slices);
  const int count = static_cast<int>(static_cast<int64_t>(row.depth) * (slice + 1) / slices) - begin;
  const int lane = threadIdx.x % kTile, own_row = threadIdx.x / kTile;
  const int vector = tile * kTile + lane;

  const Mail sums_mail(&has_sums);
  if (slice == 0 && threadIdx.x == 0) sums_mail.expect(slices * (kMatrices * kColumns + 1) * sizeof(float));
  enter_cluster();
  if (waits_first) wait_for_previous();
  const W* from[kMatrices];
  int64_t stride[kMatrices];
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) {
    const Source<W> source = columns.source(min(vector, columns.vectors - 1), m);
    from[m] = source.data + (begin + own_row) * source.row;
    stride[m] = source.row * kRows;
  }
  // Of the rows that the thread loads: how many are left.
  int left = vector < columns.vectors ? (count - own_row + kRows - 1) / kRows : 0;
  const uint4* const ring = reinterpret_cast<const uint4*>(memory) + threadIdx.x;
  const uint32_t own = shared_address(ring);
  const ReadOnce once;
  const auto load_next = [&](int place) {
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) {
      once.copy_async(own + (place * kMatrices + m) * kThreads * 16, from[m], left > 0);
      from[m] += stride[m];
    }
    --left;
    commit_copies();
  };
#pragma unroll
  for (int u = 0; u < kDeep - 1; ++u) load_next(u);
#pragma unroll
  for (int u = 0; u < Shape::kAhead; ++u) {
    constexpr int kLine = 8;  // vectors
    if (u >= left || lane % kLine != 0) break;
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) prefetch(from[m] + u * stride[m]);
  }
  if (!waits_first) wait_for_previous();

  const int steps = (count + kRows - 1) / kRows;
  float squares = make_row<kThreads>(row, begin, count, steps * kRows, row.sum != nullptr && tile == 0, h);
  if (row.norm_weight != nullptr) squares = block_sum(squares);
  __syncthreads();
  float sums[kMatrices][kN] = {};
  const float* factors = h + own_row;
  for (int done = 0; done < steps; done += kDeep, factors += kDeep * kRows) {
    if (done + kDeep >= steps) let_next_start();
#pragma unroll
    for (int u = 0; u < kDeep; ++u) {
      if (done + u >= steps) break;
      wait_for_copies<kDeep - 2>();
      const float factor = factors[u * kRows];
      uint4 vectors[kMatrices];
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) vectors[m] = ring[(u * kMatrices + m) * kThreads];
      load_next((u + kDeep - 1) % kDeep);  // to the place of the step before
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) {
        const auto weights = reinterpret_cast<const Vector<W, kN>&>(vectors[m]);
#pragma unroll
        for (int j = 0; j < kN; ++j) sums[m][j] += factor * widen(weights.lane[j]);
      }
    }
  }

  wait_for_copies<0>();
  __syncthreads();  // nobody needs the ring any more
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
    for (int j = 0; j < kN; ++j) partial[(own_row * kMatrices + m) * kColumns + lane * kN + j] = sums[m][j];
  }
  __syncthreads();
  wait_for_cluster();  // its first block runs
  for (int i = threadIdx.x; i < kMatrices * kColumns; i += kThreads) {
    float sum = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) sum += partial[r * kMatrices * kColumns + i];
    sums_mail.send(0, gathered + slice * kMatrices * kColumns + i, sum);
  }
  if (threadIdx.x == 0) sums_mail.send(0, gathered_squares + slice, squares);
  if (slice > 0) return;
  sums_mail.wait();
  float scale = 1;
  if (row.norm_weight != nullptr) {
    float total = 0;
    for (int s = 0; s < slices; ++s) total += gathered_squares[s];
    scale = 1.0f / sqrtf(total / static_cast<float>(row.depth) + row.epsilon);
  }
  for (int i = threadIdx.x; i < kColumns && tile * kColumns + i < columns.vectors * kN; i += kThreads) {
    float totals[kMatrices] = {};
    for (int s = 0; s < slices; ++s) {
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) totals[m] += gathered[(s * kMatrices + m) * kColumns + i];
    }
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) totals[m] *= scale;
    columns.finish(0, tile * kColumns + i, totals);
  }
}

// Slices of K, of at least so many rows: as many as run at once.
inline int64_t one_row_slices(int64_t tiles, int64_t depth) {
  constexpr int64_t kLeastRows = 128;
  int64_t slices = 1;
  for (int s = 2; s <= kMostClusterBlocks && depth / s >= kLeastRows; ++s) {
    if (tiles <= clusters_at_once(s)) slices = s;
  }
  return slices;
}

// How many blocks there are then.
inline int64_t one_row_blocks(int64_t vectors, int64_t tile, int64_t depth) {
  const int64_t tiles = divide_up(vectors, tile);
  return tiles * one_row_slices(tiles, depth);
}

template <class Shape, typename W, typename T, typename A, class Columns>
void one_row_of(const Stream& stream, const char* name, const Row<T, A>& row, const Columns& columns, bool constant) {
  const int64_t tiles = divide_up(columns.vectors, Shape::kTile), slices = one_row_slices(tiles, row.depth);
  const int64_t gathered = slices * (Shape::kMatrices * Shape::kTile * kLanes<W> + 1);
  const int64_t rows = divide_up(divide_up(row.depth, slices), Shape::kRows) * Shape::kRows;
  int64_t bytes = Shape::kRing + (gathered + rows) * static_cast<int64_t>(sizeof(float));
  // Where there is one wave, no block shares a multiprocessor with another one.
  if (tiles <= clusters_at_once(1)) bytes = std::max<int64_t>(bytes, kBytesAlone);
  stream.launch_clusters(name, true, one_row_cuda<Shape, W, T, A, Columns>, blocks(tiles * slices),
                         static_cast<unsigned>(slices), Shape::kThreads, static_cast<size_t>(bytes), row, columns,
                         !constant);
}

// The matrices, of dtype W, have vectors; `constant` says whether they are the same in every run. Only where kernels
// can start early.
template <typename W, typename T, typename A, class Columns>
void one_row(const Stream& stream, const char* name, const Row<T, A>& row, const Columns& columns, bool constant) {
  const auto go = [&](auto shape) { one_row_of<decltype(shape), W>(stream, name, row, columns, constant); };
  if constexpr (Columns::kMatrices == 1) {
    using Wide = OneRowShape<1, 64, 512>;
    using Middle = OneRowShape<1, 32, 768>;
    using Narrow = OneRowShape<1, 24, 576>;
    // Of one wave; wide tiles are as good as others where there are more.
    const auto blocks_of = [&](int tile) {
      const int64_t count = one_row_blocks(columns.vectors, tile, row.depth);
      return count <= clusters_at_once(1) ? count : 0;
    };
    const int64_t wide = blocks_of(Wide::kTile), middle = blocks_of(Middle::kTile), narrow = blocks_of(Narrow::kTile);
    // Rows of 384 bytes are read slower, which a fifth more blocks make up for.
    if (5 * narrow > 6 * std::max(wide, middle)) {
      go(Narrow{});
    } else if (middle > wide) {
      go(Middle{});
    } else {
      go(Wide{});
    }
  } else {
    go(OneRowShape<Columns::kMatrices, 48, 384>{});
  }
}

// Whether kernels start early here, and a row of this depth fits the shared memory, whatever the columns.
inline bool fits_one_row(int64_t depth) {
  constexpr int64_t kMost = 112 << 10;
  return can_start_early() && depth * static_cast<int64_t>(sizeof(float)) <= kMost;
}

}  // namespace onnxfuse::cuda
