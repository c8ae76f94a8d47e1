// Matrix products of the attention kernel on tiles that fit in registers. Included by attention_kernel.h.

inline constexpr int64_t kTileRows = 6;
inline constexpr int64_t kTileVectors = kLanes == 8 ? 2 : 4;  // 6 * 4 of 32 registers, or 6 * 2 of 16, hold sums

// c[r, :] = c[r, :] * factors[r] + sum over i < steps of a[r, i] * b[i, :], for kRows rows and kVectors vectors;
// without `factors` what c holds does not count. `ahead` is told what is read of b.
template <int kRows, int kVectors, typename B, typename A>
void multiply_tile(int64_t steps, const float* a, int64_t a_row, int64_t a_step, const B* b, int64_t b_row, float* c,
                   int64_t c_row, const float* factors, A& ahead) {
  Vec sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v)
      sums[r][v] = factors ? load(c + r * c_row + v * kLanes) * splat(factors[r]) : splat(0.0f);
  for (int64_t i = 0; i < steps; ++i, a += a_step, b += b_row) {
    ahead.read(kVectors * kLanes * sizeof(B));
    Vec columns[kVectors];
    for (int v = 0; v < kVectors; ++v) columns[v] = load(b + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Vec factor = splat(a[r * a_row]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = fma(factor, columns[v], sums[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) store(c + r * c_row + v * kLanes, sums[r][v]);
}

// The same for at most kTileRows rows and any number of vectors.
template <int kVectors = kTileVectors, typename B, typename A>
void multiply(int64_t rows, int64_t vectors, int64_t steps, const float* a, int64_t a_row, int64_t a_step, const B* b,
              int64_t b_row, float* c, int64_t c_row, const float* factors, A& ahead) {
  using Tile = void (*)(int64_t, const float*, int64_t, int64_t, const B*, int64_t, float*, int64_t, const float*, A&);
  static constexpr Tile kTiles[kTileRows] = {multiply_tile<1, kVectors, B, A>, multiply_tile<2, kVectors, B, A>,
                                             multiply_tile<3, kVectors, B, A>, multiply_tile<4, kVectors, B, A>,
                                             multiply_tile<5, kVectors, B, A>, multiply_tile<6, kVectors, B, A>};
  for (; vectors >= kVectors; vectors -= kVectors, b += kVectors * kLanes, c += kVectors * kLanes)
    kTiles[rows - 1](steps, a, a_row, a_step, b, b_row, c, c_row, factors, ahead);
  if constexpr (kVectors > 1) {
    if (vectors > 0) multiply<kVectors - 1>(rows, vectors, steps, a, a_row, a_step, b, b_row, c, c_row, factors, ahead);
  }
}

// scores[r, j] = q[r, :] . k[j, :] for kRows rows and kLanes / kRows keys; keys beyond the last repeat it.
template <int kRows, typename K, typename A>
void dot_tile(int64_t dims, const float* q, int64_t q_row, const K* k, int64_t k_row, int64_t keys, float* scores,
              int64_t scores_row, A& ahead) {
  constexpr int64_t kKeys = kLanes / kRows;
  const K* key[kKeys];
  for (int64_t j = 0; j < kKeys; ++j) key[j] = k + std::min(j, keys - 1) * k_row;
  Vec sums[kLanes];
  for (Vec& sum : sums) sum = splat(0.0f);
  for (int64_t d = 0; d < dims; d += kLanes) {
    ahead.read(kKeys * kLanes * sizeof(K));
    Vec queries[kRows];
    for (int r = 0; r < kRows; ++r) queries[r] = load(q + r * q_row + d);
    for (int64_t j = 0; j < kKeys; ++j) {
      const Vec part = load(key[j] + d);
      for (int r = 0; r < kRows; ++r) sums[r * kKeys + j] = fma(queries[r], part, sums[r * kKeys + j]);
    }
  }
  float lanes[kLanes];
  store(lanes, sum_each(sums));
  for (int r = 0; r < kRows; ++r) std::copy_n(lanes + r * kKeys, kKeys, scores + r * scores_row);
}

// The same for any number of rows and keys. dims is a multiple of kLanes; a row of scores has room for whole vectors.
template <typename K, typename A>
void dot(int64_t rows, int64_t dims, const float* q, int64_t q_row, const K* k, int64_t k_row, int64_t keys,
         float* scores, int64_t scores_row, A& ahead) {
  const auto row_tile = [&](auto tile, int64_t height) {
    for (int64_t j = 0; j < keys; j += kLanes / height)
      tile(dims, q, q_row, k + j * k_row, k_row, keys - j, scores + j, scores_row, ahead);
    q += height * q_row;
    scores += height * scores_row;
    rows -= height;
  };
  if constexpr (kLanes >= 8) {
    while (rows >= 4) row_tile(dot_tile<4, K, A>, 4);
    while (rows >= 2) row_tile(dot_tile<2, K, A>, 2);
  }
  while (rows >= 1) row_tile(dot_tile<1, K, A>, 1);
}

// from: [count, size] -> to: [size, to_row], the columns beyond count hold anything up to a whole vector.
template <typename T, typename A>
void transpose_block(const T* from, int64_t from_row, int64_t count, int64_t size, float* to, int64_t to_row,
                     A& ahead) {
  for (int64_t j = 0; j < count; j += kLanes) {
    for_lanes(size, [&](int64_t d, auto lanes) {
      ahead.read(kLanes * kLanes * sizeof(T));
      Vec square[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) square[i] = load(from + std::min(j + i, count - 1) * from_row + d, lanes);
      transpose(square);
      for (int64_t i = 0; i < std::min(kLanes, size - d); ++i) store(to + (d + i) * to_row + j, square[i]);
    });
  }
}

// to[i, 0..size-1] = from[i, 0..size-1] in float32, zeros up to a whole vector.
template <typename T, typename A>
void convert_rows(const T* from, int64_t from_row, int64_t count, int64_t size, float* to, int64_t to_row, A& ahead) {
  for (int64_t i = 0; i < count; ++i, from += from_row, to += to_row) {
    ahead.read(size * sizeof(T));
    for_lanes(size, [&](int64_t d, auto lanes) { store(to + d, load(from + d, lanes)); });
  }
}
