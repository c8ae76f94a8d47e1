// SkipRMSNorm on raw pointers, see skip_rms_norm.h. A thread owns whole rows; the sum of a row is in the first-level
// cache when it is normalised. 4 * sizeof(T) bytes of memory traffic an element.
#include "rms_norm/rms_norm_kernel.h"

template <typename T, typename W>
void skip_rms_norm_rows(const T* x, const T* skip, const W* weight, T* y, T* total, int64_t rows, int64_t d,
                        float epsilon) {
  for (int64_t row = 0; row < rows; ++row, x += d, skip += d, y += d, total += d) {
    for_lanes(d, [&](int64_t i, auto lanes) { store(total + i, load(x + i, lanes) + load(skip + i, lanes), lanes); });
    rms_norm_rows(total, weight, y, 1, d, epsilon);
  }
}
