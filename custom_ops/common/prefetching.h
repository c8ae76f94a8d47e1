// Prefetching of weights that are in order in memory, while those before them are multiplied.
//
// Intel's processors follow a stream up to the end of a page only, and one stream alone leaves a quarter of the memory
// bandwidth unused: eight streams, a page apart, are prefetched. AMD's follow it further, and eight streams cost them a
// third of the bandwidth (Zen 4: one core read 19 GB/s of 28). There lines are prefetched in order, for several rows;
// for one row the processor alone is the quickest.
#pragma once

#include <cstdint>

#include "common/intrinsics.h"

namespace onnxfuse {

inline constexpr int64_t kInOrderAhead = 8192;  // bytes between what is used and what is prefetched in order

// Whether lines are best prefetched in order.
inline bool prefetches_in_order() {
#if defined(__x86_64__)
  static const bool amd = __builtin_cpu_is("amd");
  return amd;
#else
  return true;
#endif
}

// The lines that are prefetched instead of those that are used.
class WeightsAhead {
 public:
  explicit ONNXFUSE_INLINE WeightsAhead(const void* used, bool in_order = false) : in_order_(in_order) {
    const auto at = reinterpret_cast<uintptr_t>(used), slice = at / kSlice * kSlice;
    next_ = reinterpret_cast<const char*>(in_order ? at + kInOrderAhead : slice + kSlice + (at - slice) / kStreams);
  }

  // Instead of line `line`, counted from the first that is used: eight lines are used up for one of each stream.
  ONNXFUSE_INLINE void fetch(int64_t line) const {
    const int64_t streams = line / kStreams * 64 + line % kStreams * kPage;
    __builtin_prefetch(next_ + (in_order_ ? line * 64 : streams), 0, 2);
  }

 private:
  static constexpr int64_t kPage = 4096, kStreams = 8;
  static constexpr uintptr_t kSlice = kStreams * kPage;
  const char* next_;
  bool in_order_;
};

}  // namespace onnxfuse
