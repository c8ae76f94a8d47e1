// RMSNorm on raw pointers, see rms_norm.h. A thread owns whole rows. A row is read twice, the second time from the
// first-level cache, and written once: 2 * sizeof(T) bytes of memory traffic an element.

// The sum of squares of a row: four partial sums hide the latency of the addition.
template <typename T>
float sum_of_squares(const T* x, int64_t d) {
  Vec sums[4] = {splat(0), splat(0), splat(0), splat(0)};
  int64_t i = 0;
  for (; i + 4 * kLanes <= d; i += 4 * kLanes) {
    for (int k = 0; k < 4; ++k) {
      const Vec v = load(x + i + k * kLanes);
      sums[k] = fma(v, v, sums[k]);
    }
  }
  for_lanes(d - i, [&](int64_t j, auto lanes) {
    const Vec v = load(x + i + j, lanes);
    sums[0] = fma(v, v, sums[0]);
  });
  return sum(sums[0] + sums[1] + (sums[2] + sums[3]));
}

// y = x * factor * weight for a row.
template <typename T, typename W>
void scale_row(const T* x, float factor, const W* weight, T* y, int64_t d) {
  const Vec scale = splat(factor);
  for_lanes(d,
            [&](int64_t i, auto lanes) { store(y + i, load(x + i, lanes) * scale * load(weight + i, lanes), lanes); });
}

template <typename T, typename W>
void rms_norm_rows(const T* x, const W* weight, T* y, int64_t rows, int64_t d, float epsilon) {
  for (int64_t row = 0; row < rows; ++row, x += d, y += d) {
    const float mean_square = sum_of_squares(x, d) / static_cast<float>(d);
    scale_row(x, 1.0f / __builtin_sqrtf(mean_square + epsilon), weight, y, d);
  }
}
