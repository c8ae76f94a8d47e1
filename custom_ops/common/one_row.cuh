// Products of one row and matrices, as when decoding: bound by reading the matrices, once. Compute capability 9.0.
//
// A block owns a tile of columns, 16 vectors of 16 bytes, and a slice of K; the blocks of a cluster own the slices of
// one tile. A thread owns one vector of every 16th row and has several of them on their way. Sums are added up in the
// warp by shuffles, in the block through shared memory, and in the shared memory of the cluster's first block, which
// finishes the columns. A block makes its slice of the row h for itself: x, or x + skip rounded to T, times the weight
// of the norm; what the norm divides by is added up along with the sums. The first loads start before the kernel waits
// for the one that writes x, see early_start.cuh.
#pragma once

#include "common/cluster.cuh"
#include "common/early_start.cuh"
#include "common/matrix.cuh"

namespace onnxfuse::cuda {

inline constexpr int kOneRowThreads = 256;
inline constexpr int kTileLanes = 16;  // vectors of a tile
// Vectors that a thread has on their way where so many blocks share a multiprocessor and its registers.
template <int kBlocks>
inline constexpr int kLoads = kBlocks >= 4 ? 8 : 12;
inline constexpr int kMostSlices = 8;  // blocks of a cluster

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

  Row(const A* x, int64_t depth) : x(x), depth(static_cast<int>(depth)) {}

  // What is done to x before the product, as the nodes say it.
  void enters(const T* skip_, T* sum_, const AnyTensor& norm_weight_, float epsilon_) {
    skip = skip_;
    sum = sum_;
    norm_weight = norm_weight_.data;
    norm_is_wide = norm_weight_.dtype == DType::kFloat32;
    epsilon = epsilon_;
  }
};

// Element k of h, without the division by the norm, which adds the squares that it needs to `squares`. The blocks of
// the first tile write x + skip.
template <typename T, typename A>
__device__ inline float element(const Row<T, A>& row, int k, bool first_tile, float* squares) {
  float x = widen(row.x[k]);
  if (row.skip != nullptr) {
    const T sum = narrow<T>(x + widen(row.skip[k]));
    if (row.sum != nullptr && first_tile) row.sum[k] = sum;
    x = widen(sum);
  }
  if (row.norm_weight == nullptr) return x;
  *squares += x * x;
  return x * (row.norm_is_wide ? static_cast<const float*>(row.norm_weight)[k]
                               : widen(static_cast<const T*>(row.norm_weight)[k]));
}

// Where a vector of columns starts, and how far its rows are apart.
template <typename W>
struct Source {
  const W* data;
  int64_t row;

  __device__ Source(const Matrix<W>& matrix, int64_t column) : data(matrix.at(0, column)), row(matrix.row) {}
};

// Columns: what is multiplied, kMatrices of equal size side by side. `vectors` is how many vectors of columns there are
// of each; source(vector, matrix) gives the place of a vector; finish(column, sums) takes the sums of a column of each.
// waits_first: the matrices are not constant.
template <int kBlocks, typename W, typename T, typename A, class Columns>
__global__ void __launch_bounds__(kOneRowThreads, kBlocks)
    one_row_cuda(Row<T, A> row, Columns columns, bool waits_first) {
  constexpr int kN = kLanes<W>, kMatrices = Columns::kMatrices, kColumns = kTileLanes * kN;
  constexpr int kRows = kOneRowThreads / kTileLanes, kWarps = kOneRowThreads / kWarp,
                kDeep = kLoads<kBlocks> / kMatrices;
  extern __shared__ float h[];
  __shared__ float partial[kWarps][kMatrices][kColumns], gathered[kMostSlices][kMatrices][kColumns];
  __shared__ float gathered_squares[kMostSlices];
  const int slices = cluster_size(), slice = cluster_rank(), tile = blockIdx.x / slices;
  const int begin = static_cast<int>(static_cast<int64_t>(row.depth) * slice / slices);
  const int count = static_cast<int>(static_cast<int64_t>(row.depth) * (slice + 1) / slices) - begin;
  const int lane = threadIdx.x % kTileLanes, own_row = threadIdx.x / kTileLanes;
  const int vector = tile * kTileLanes + lane;

  let_next_start();
  arrive_at_cluster();
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
  uint4 ahead[kDeep][kMatrices];
  const auto load_next = [&](uint4(&to)[kMatrices]) {
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) {
      to[m] = left > 0 ? load_once(from[m]) : uint4{};
      from[m] += stride[m];
    }
    --left;
  };
#pragma unroll
  for (int u = 0; u < kDeep; ++u) load_next(ahead[u]);
  if (!waits_first) wait_for_previous();

  const int steps = (count + kRows - 1) / kRows, rounds = (steps + kDeep - 1) / kDeep;
  float squares = 0;
  for (int k = threadIdx.x; k < rounds * kDeep * kRows; k += kOneRowThreads) {
    h[k] = k < count ? element(row, begin + k, tile == 0, &squares) : 0.0f;
  }
  __syncthreads();
  float sums[kMatrices][kN] = {};
  const float* factors = h + own_row;
  for (int round = 0; round < rounds; ++round, factors += kDeep * kRows) {
#pragma unroll
    for (int u = 0; u < kDeep; ++u) {
      const float factor = factors[u * kRows];
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) {
        const auto weights = reinterpret_cast<const Vector<W, kN>&>(ahead[u][m]);
#pragma unroll
        for (int j = 0; j < kN; ++j) sums[m][j] += factor * widen(weights.lane[j]);
      }
      load_next(ahead[u]);
    }
  }

#pragma unroll
  for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      const float sum = sums[m][j] + __shfl_xor_sync(0xffffffff, sums[m][j], kTileLanes);
      if (threadIdx.x % kWarp < kTileLanes) partial[threadIdx.x / kWarp][m][lane * kN + j] = sum;
    }
  }
  if (row.norm_weight != nullptr) squares = block_sum(squares);
  __syncthreads();
  wait_for_cluster();  // its first block runs
  for (int i = threadIdx.x; i < kMatrices * kColumns; i += kOneRowThreads) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += partial[w][i / kColumns][i % kColumns];
    store_in_first(&gathered[slice][i / kColumns][i % kColumns], sum);
  }
  if (threadIdx.x == 0) store_in_first(&gathered_squares[slice], squares);
  arrive_at_cluster();
  wait_for_cluster();
  const int column = tile * kColumns + static_cast<int>(threadIdx.x);
  if (slice > 0 || threadIdx.x >= kColumns || column >= columns.vectors * kN) return;
  float totals[kMatrices] = {}, total_squares = 0;
  for (int s = 0; s < slices; ++s) {
    total_squares += gathered_squares[s];
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) totals[m] += gathered[s][m][threadIdx.x];
  }
  if (row.norm_weight != nullptr) {
    const float scale = 1.0f / sqrtf(total_squares / static_cast<float>(row.depth) + row.epsilon);
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) totals[m] *= scale;
  }
  columns.finish(column, totals);
}

// Slices of K: as many as give every multiprocessor the same number of blocks, and two or more of them.
inline int64_t one_row_slices(int64_t tiles, int64_t depth, int64_t processors, int64_t most_blocks) {
  constexpr int64_t kLeastRows = 128;
  constexpr double kWantedBlocks = 1.9;
  int64_t best = 1;
  double best_score = 0;
  for (int64_t slices = 1; slices <= kMostSlices; ++slices) {
    const int64_t count = tiles * slices;
    if (slices > 1 && (count > most_blocks * processors || depth / slices < kLeastRows)) break;
    const double of_each = static_cast<double>(count) / static_cast<double>(processors);
    const double score = std::min(of_each / static_cast<double>(divide_up(count, processors)), of_each / kWantedBlocks);
    if (score < best_score) continue;
    best = slices;
    best_score = score;
  }
  return best;
}

template <int kBlocks, typename W, typename T, typename A, class Columns>
void one_row_by(const Stream& stream, const char* name, const Row<T, A>& row, const Columns& columns, bool constant,
                bool early) {
  constexpr int64_t kPadding = kLoads<kBlocks> * kOneRowThreads / kTileLanes;
  const int64_t tiles = divide_up(columns.vectors, kTileLanes);
  const int64_t slices = one_row_slices(tiles, row.depth, device_attribute(cudaDevAttrMultiProcessorCount), kBlocks);
  const int64_t bytes = (divide_up(row.depth, slices) + kPadding) * static_cast<int64_t>(sizeof(float));
  stream.launch_clusters(name, early, one_row_cuda<kBlocks, W, T, A, Columns>, blocks(tiles * slices),
                         static_cast<unsigned>(slices), kOneRowThreads, static_cast<size_t>(bytes), row, columns,
                         !constant);
}

// The matrices, of dtype W, have vectors; `constant` says whether they are the same in every run. Only where kernels
// can start early. The choice is what was quickest on an H200 in a chain of a Llama's products of fp16: where there are
// few columns or two matrices, more loads of fewer blocks; an early start costs the kernel before some of its room,
// which two matrices at a time do not make up for.
template <typename W, typename T, typename A, class Columns>
void one_row(const Stream& stream, const char* name, const Row<T, A>& row, const Columns& columns, bool constant) {
  if constexpr (Columns::kMatrices > 1) {
    one_row_by<3, W>(stream, name, row, columns, constant, false);
  } else if (static_cast<int64_t>(columns.vectors) * kLanes<W> > row.depth) {
    one_row_by<4, W>(stream, name, row, columns, constant, true);
  } else {
    one_row_by<3, W>(stream, name, row, columns, constant, true);
  }
}

// Whether kernels start early here, and a row of this depth fits the shared memory, whatever the columns.
inline bool fits_one_row(int64_t depth) {
  constexpr int64_t kMost = 160 << 10;
  return can_start_early() && depth * static_cast<int64_t>(sizeof(float)) <= kMost;
}

}  // namespace onnxfuse::cuda
