// Views of the tensors that the runtime passes to an operator.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <ostream>

#include "common/dtype.h"
#include "common/error.h"

namespace onnxfuse {

inline constexpr int kMaxRank = 8;

// The dimensions of a tensor, outermost first. A negative index counts from the end.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : Shape(dims.begin(), dims.size()) {}
  Shape(const int64_t* dims, size_t rank) : rank_(static_cast<int>(rank)) {
    require(rank <= kMaxRank, "a tensor has rank ", rank, ", expected at most ", kMaxRank);
    std::copy_n(dims, rank, dims_);
  }

  int rank() const { return rank_; }
  const int64_t* data() const { return dims_; }
  int64_t& operator[](int i) { return dims_[i < 0 ? rank_ + i : i]; }
  int64_t operator[](int i) const { return dims_[i < 0 ? rank_ + i : i]; }

  // Number of elements spanned by the dimensions first .. last - 1.
  int64_t count(int first, int last) const {
    int64_t product = 1;
    for (int i = first; i < last; ++i) product *= dims_[i];
    return product;
  }
  int64_t count() const { return count(0, rank_); }

  friend bool operator==(const Shape& a, const Shape& b) {
    return std::equal(a.dims_, a.dims_ + a.rank_, b.dims_, b.dims_ + b.rank_);
  }
  friend bool operator!=(const Shape& a, const Shape& b) { return !(a == b); }

  friend std::ostream& operator<<(std::ostream& text, const Shape& shape) {
    text << '[';
    for (int i = 0; i < shape.rank_; ++i) text << (i ? "," : "") << shape.dims_[i];
    return text << ']';
  }

 private:
  int rank_ = 0;
  int64_t dims_[kMaxRank] = {};
};

// A tensor whose element type is known at compile time. An optional one that the node lacks is not `present`.
template <typename T>
struct Tensor {
  bool present = false;
  T* data = nullptr;
  Shape shape;
};

// An input whose element type is known at run time only.
struct AnyTensor {
  bool present = false;
  const void* data = nullptr;
  Shape shape;
  DType dtype = DType::kAny;

  template <typename T>
  Tensor<const T> as() const {
    require(!present || dtype == kDTypeOf<T>, "an input is ", dtype_name(dtype), ", expected ",
            dtype_name(kDTypeOf<T>));
    return {present, static_cast<const T*>(data), shape};
  }
};

}  // namespace onnxfuse
