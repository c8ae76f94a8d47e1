// Prefetching of keys and values while others are worked on. Included by attention_kernel.h.
//
// A region is fetched in order, or as several streams, a line of each in turn: many processors follow a stream up to
// the end of a page only, and one stream alone leaves a third of the memory bandwidth unused (see
// common/prefetching.h).

inline constexpr int64_t kLine = 64;

// `streams` streams, `stream` bytes apart; each has `pieces` of `bytes`, `stride` apart.
struct Region {
  const char* data = nullptr;
  int64_t streams = 0, stream = 0, pieces = 0, bytes = 0, stride = 0;
};

// `count` rows of `size` elements; the last stream may go a little beyond.
template <typename T>
Region region_of(const T* data, int64_t size, int64_t row, int64_t count) {
  const char* bytes = reinterpret_cast<const char*>(data);
  const int64_t streams = prefetches_in_order() ? 1 : 8, width = size * static_cast<int64_t>(sizeof(T)),
                stride = row * static_cast<int64_t>(sizeof(T));
  if (row == size) {
    const int64_t each = attention::round_up(attention::divide_up(count * width, streams), kLine);
    return {bytes, streams, each, 1, each, each};
  }
  const int64_t rows = attention::divide_up(count, streams);
  return {bytes, streams, rows * stride, rows, attention::round_up(width, kLine), stride};
}

// Fetches a region into the second-level cache in step with the reading of another.
class Ahead {
 public:
  Ahead() = default;
  Ahead(const Region& next, int64_t bytes_to_read)
      : next_(next),
        left_(next.streams * next.pieces * next.bytes),
        pace_(attention::divide_up(left_, std::max<int64_t>(bytes_to_read, 1))) {}

  // A piece of so many bytes comes next; it may be read several times.
  void begin(int64_t bytes) { allowed_ = std::min(allowed_ + bytes * pace_, left_); }

  ONNXFUSE_INLINE void read(int64_t bytes) {
    due_ = std::min(due_ + bytes * pace_, allowed_);
    for (; done_ < due_; done_ += next_.streams * kLine) {
      for (int64_t i = 0; i < next_.streams; ++i) __builtin_prefetch(next_.data + i * next_.stream + column_, 0, 2);
      column_ += kLine;
      if (column_ == next_.bytes) {
        column_ = 0;
        next_.data += next_.stride;
      }
    }
  }

 private:
  Region next_;
  int64_t left_ = 0, pace_ = 0;
  int64_t allowed_ = 0, due_ = 0, done_ = 0;
  int64_t column_ = 0;
};

// For data that is in a cache already.
struct NothingAhead {
  void read(int64_t) {}
};
