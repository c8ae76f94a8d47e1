// Prefetching of weights that are in order in memory, while those before them are multiplied.
#pragma once

#include <cstdint>

#include "common/intrinsics.h"

namespace onnxfuse {

// The lines 32 KB on, in eight streams, a page apart: a processor follows a stream up to the end of a page only, and
// one stream alone leaves a quarter of the memory bandwidth unused. Eight lines are used up for one of each stream.
class WeightsAhead {
 public:
  explicit ONNXFUSE_INLINE WeightsAhead(const void* used) {
    const auto at = reinterpret_cast<uintptr_t>(used), slice = at / kSlice * kSlice;
    next_ = reinterpret_cast<const char*>(slice + kSlice + (at - slice) / kStreams);
  }

  // Instead of line `line`, counted from the first that is used.
  ONNXFUSE_INLINE void fetch(int64_t line) const {
    __builtin_prefetch(next_ + line / kStreams * 64 + line % kStreams * kPage, 0, 2);
  }

 private:
  static constexpr int64_t kPage = 4096, kStreams = 8;
  static constexpr uintptr_t kSlice = kStreams * kPage;
  const char* next_;
};

}  // namespace onnxfuse
