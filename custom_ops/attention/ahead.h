// Prefetching of keys and values while others are worked on. Included by attention_kernel.h.
//
// A block lies in as many pages as it has streams here: a processor follows a stream up to the end of a page only, and
// one stream alone leaves a third of the memory bandwidth unused.

// Some rows of memory, the same number of bytes of each.
struct Region {
  const char* data = nullptr;
  int64_t rows = 0, bytes = 0, stride = 0;
};

// `count` rows of `size` elements; if they are adjacent, as pages.
template <typename T>
Region region_of(const T* data, int64_t size, int64_t row, int64_t count) {
  constexpr int64_t kPage = 4096;
  const char* bytes = reinterpret_cast<const char*>(data);
  const int64_t width = size * static_cast<int64_t>(sizeof(T));
  if (row != size) return {bytes, count, width, row * static_cast<int64_t>(sizeof(T))};
  return {bytes, attention::divide_up(count * width, kPage), std::min(count * width, kPage), kPage};
}

// Fetches a region into the second-level cache in step with the reading of another.
class Ahead {
 public:
  Ahead() = default;
  Ahead(const Region& next, int64_t bytes_to_read)
      : next_(next),
        left_(next.rows * next.bytes),
        pace_(attention::divide_up(left_, std::max<int64_t>(bytes_to_read, 1))) {}

  // A piece of so many bytes comes next; it may be read several times.
  void begin(int64_t bytes) { allowed_ = std::min(allowed_ + bytes * pace_, left_); }

  ONNXFUSE_INLINE void read(int64_t bytes) {
    due_ = std::min(due_ + bytes * pace_, allowed_);
    int64_t row = row_, column = column_;
    for (int64_t done = done_; done < due_; done += kLine) {
      __builtin_prefetch(next_.data + row * next_.stride + column, 0, 2);
      const bool wraps = ++row == next_.rows;
      row = wraps ? 0 : row;
      column += wraps ? kLine : 0;
    }
    done_ = std::max(done_, (due_ + kLine - 1) / kLine * kLine);
    row_ = row, column_ = column;
  }

 private:
  static constexpr int64_t kLine = 64;

  Region next_;
  int64_t left_ = 0, pace_ = 0;
  int64_t allowed_ = 0, due_ = 0, done_ = 0;
  int64_t row_ = 0, column_ = 0;
};

// For data that is in a cache already.
struct NothingAhead {
  void read(int64_t) {}
};
