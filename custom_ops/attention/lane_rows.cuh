// The online softmax on scores as tensor cores leave them in registers (mma.cuh), for the kernels that use them.
//
// Of a product of 16 rows by kKeys keys a lane holds two rows, lane / 4 and the one eight further on, which it shares
// with the three lanes next to it: scores[i] belongs to row i / 2 % 2 of them and to key i / 4 * 8 + lane % 4 * 2 + i
// % 2.
#pragma once

#include "attention/arguments.cuh"

namespace onnxfuse::attention::cuda {

// Scores are q k^T * scale for a positive scale, and nothing else.
template <typename T>
__host__ __device__ inline bool has_plain_scores(const Problem<T>& p) {
  return p.bias.narrow == nullptr && p.bias.single == nullptr && p.softcap <= 0 && p.scale > 0;
}

// The rows of one key-value head.
struct HeadPlace {
  int64_t b, head;
  int group, rows, offset;  // heads of q; of queries and the group; L - S

  template <typename T>
  __device__ HeadPlace(const Problem<T>& p, int64_t b, int64_t head, int keys)
      : b(b),
        head(head),
        group(static_cast<int>(p.heads) / static_cast<int>(p.kv_heads)),
        rows(static_cast<int>(p.queries) * group),
        offset(keys - static_cast<int>(p.queries)) {}

  __device__ int query_of(int row) const { return group == 1 ? row : row / group; }

  template <typename T>
  __device__ T* at(const Rows<T>& x, int row) const {
    const int query = query_of(row);
    return row_of(x, b, head * group + (row - query * group), query);
  }

  template <typename T>
  __device__ Query<T> query(const Arguments<T>& a, int row) const {
    const int existing = min(row, rows - 1), i = query_of(existing);
    return Query<T>(a, b, static_cast<int>(head) * group + existing - i * group, i, offset);
  }
};

// Rows of a key-value head that lie equally far apart, one after the other: only the first is divided for.
class RowWalk {
 public:
  __device__ RowWalk(const HeadPlace& place, int row, int step)
      : place_(place),
        query_(place.query_of(row)),
        member_(row - query_ * place.group),
        queries_(place.query_of(step)),
        members_(step - queries_ * place.group) {}

  template <typename T>
  __device__ T* at(const Rows<T>& x) const {
    return row_of(x, place_.b, place_.head * place_.group + member_, query_);
  }

  __device__ void next() {
    query_ += queries_;
    member_ += members_;
    if (member_ < place_.group) return;
    member_ -= place_.group;
    ++query_;
  }

 private:
  const HeadPlace& place_;
  int query_, member_;     // of the row: which query, and which head of its group
  int queries_, members_;  // of a step
};

// Keys begin..end-1, which all of some rows see, were it not for the mask.
struct SeenByAll {
  int begin, end;

  template <typename T>
  __device__ SeenByAll(const Problem<T>& p, const HeadPlace& place, int first, int count)
      : begin(0), end(p.causal ? place.query_of(min(first, place.rows - 1)) + place.offset + 1 : 0x7fffffff) {
    const int window = static_cast<int>(min(p.window, int64_t{0x3fffffff}));
    if (window <= 0) return;
    begin = place.query_of(min(first + count, place.rows) - 1) + place.offset - window + 1;
  }
};

template <int kKeys>
inline constexpr int kWordsOf = (kKeys + 31) / 32;  // of their bits

template <typename T, int kKeys, bool kPlain>
struct LaneRows {
  float top[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};  // largest score and sum of weights so far, the lane's own
  float less[2];                                             // what earlier sums of values are worth

  // Scores of the tile of keys from `start` on become weights. `row`: the lane's first. `bits`: the keys that exist and
  // that the padding mask shows; bits of no key are set.
  __device__ void weigh(const Arguments<T>& a, const HeadPlace& place, const SeenByAll& seen, int row, int start,
                        const uint32_t* bits, float (&scores)[kKeys / 2]) {
    const int lane = threadIdx.x % kWarp;
    uint32_t shown = 0xffffffff;
#pragma unroll
    for (int w = 0; w < kWordsOf<kKeys>; ++w) shown &= bits[w];
    if (!kPlain || shown != 0xffffffff || start < seen.begin || start + kKeys > seen.end) {
      const Query<T> queries[2] = {place.query(a, row), place.query(a, row + 8)};
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        const int column = i / 4 * 8 + lane % 4 * 2 + i % 2, j = start + column;
        const bool is_shown = bits[i / 16] >> (column % 32) & 1;
        const Query<T>& query = queries[i / 2 % 2];
        if constexpr (kPlain) {
          if (!is_shown || j <= query.low || j > query.high) scores[i] = -INFINITY;
        } else {
          scores[i] = query.score(a, scores[i], j, is_shown);
        }
      }
    }
    const float unit = kPlain ? a.problem.scale * kLog2E : kLog2E;  // scores times this are exponents of two
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float now = top[half];
#pragma unroll
      for (int i = 2 * half; i < kKeys / 2; i += 4) now = fmaxf(now, fmaxf(scores[i], scores[i + 1]));
      now = fmaxf(now, __shfl_xor_sync(0xffffffff, now, 1));
      now = fmaxf(now, __shfl_xor_sync(0xffffffff, now, 2));
      const float shift = now == -INFINITY ? 0.0f : now;
      less[half] = top[half] == now ? 1.0f : power_of_two((top[half] - shift) * unit);
      top[half] = now;
      total[half] *= less[half];
#pragma unroll
      for (int i = 2 * half; i < kKeys / 2; i += 4) {
#pragma unroll
        for (int c = i; c < i + 2; ++c) {
          // Beside huge numbers of a bias, the product with the unit may not come first.
          scores[c] = power_of_two(kPlain ? fmaf(scores[c], unit, -shift * unit) : (scores[c] - shift) * unit);
          total[half] += scores[c];
        }
      }
    }
  }

  // What the sums of values of a row have to be multiplied with in the end.
  __device__ float factor(int half) const {
    float sum = total[half];
    sum += __shfl_xor_sync(0xffffffff, sum, 1);
    sum += __shfl_xor_sync(0xffffffff, sum, 2);
    return sum == 0 ? 0.0f : 1.0f / sum;
  }
};

}  // namespace onnxfuse::attention::cuda
