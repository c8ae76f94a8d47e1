// What is done to the rows that enter a matrix product, behind a residual addition and a norm. A thread owns whole
// rows.
#include "rms_norm/rms_norm_kernel.h"

// total = x + skip.
template <typename T>
void add_rows(const T* x, const T* skip, T* total, int64_t count) {
  for_lanes(count, [&](int64_t i, auto lanes) { store(total + i, load(x + i, lanes) + load(skip + i, lanes), lanes); });
}
