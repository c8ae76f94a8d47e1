// The working memory of attention tasks. Rows are padded to whole vectors of any target.
#pragma once

#include <cstdint>
#include <type_traits>

#include "attention/attention.h"

namespace onnxfuse::attention {

inline constexpr int64_t kWidest = 16;  // floats in the widest vector, and in a cache line
inline constexpr int64_t kBlock = 128;  // keys per step
inline constexpr int64_t kPanel = 64;   // columns of a packed panel

constexpr int64_t divide_up(int64_t x, int64_t divisor) { return (x + divisor - 1) / divisor; }
constexpr int64_t round_up(int64_t x, int64_t multiple) { return divide_up(x, multiple) * multiple; }

// What one thread needs for a task of so many rows; arrays by row have room for a whole panel.
struct Memory {
  int64_t dims, value_dims;  // D and Dv, padded
  float* q;                  // [rows, dims] or [dims, rows], times scale
  float* out;                // [rows, value_dims], weighted sums of values
  float* scores;             // [rows, kBlock] or [kBlock, kPanel]
  float* maximum;            // [rows], largest score so far
  float* sums;               // [rows], sum of weights so far
  float* factors;            // [rows], of the last block: what earlier sums have to be multiplied with
  float* keys;               // a block of keys, converted or transposed
  float* values;             // a block of values, converted or packed
  int64_t *first, *last;     // [rows], the row sees keys first..last-1 at most

  Memory(char* base, int64_t rows, int64_t size, int64_t value_size)
      : dims(round_up(size, kWidest)), value_dims(round_up(value_size, kWidest)), base_(base) {
    const int64_t padded = round_up(rows, kPanel);
    take(q, padded * dims);
    take(out, rows * value_dims);
    take(scores, kPanel * kBlock);
    take(maximum, padded);
    take(sums, padded);
    take(factors, padded);
    take(keys, kBlock * dims);
    take(values, kBlock * round_up(value_dims, kPanel));
    take(first, padded);
    take(last, padded);
  }
  static int64_t bytes(int64_t rows, int64_t size, int64_t value_size) {
    return Memory(nullptr, rows, size, value_size).used_;
  }

 private:
  template <typename T>
  void take(T*& pointer, int64_t count) {
    pointer = reinterpret_cast<T*>(base_ + used_);
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
  }

  char* base_;
  int64_t used_ = 0;
};

// The result of a task over a part of the keys, before the division by the sum of the weights.
struct Partial {
  float *out, *maximum, *sum;  // [rows, value_dims], [rows], [rows]

  Partial(float* memory, int64_t rows, int64_t value_dims)
      : out(memory), maximum(out + rows * value_dims), sum(maximum + rows) {}
  static int64_t floats(int64_t rows, int64_t value_dims) { return round_up(rows * (value_dims + 2), kWidest); }
};

}  // namespace onnxfuse::attention
