// The end of a matrix product: what is done with the sums of a block, see gemm.h.

// Writes the sums + bias to the block's rows and columns of y: [M, columns].
template <typename T>
void round_block(const GemmBlock& block, const T* bias, T* y, int64_t columns) {
  for (int64_t panel = block.first_panel; panel < block.first_panel + block.panels; ++panel) {
    const int64_t first = panel * kPanel, count = std::min(kPanel, columns - first);
    for (int64_t row = block.first_row; row < block.first_row + block.rows; ++row) {
      const float* sums = block.row(0, panel, row);
      T* out = y + row * columns + first;
      for_lanes(count, [&](int64_t j, auto lanes) {
        Vec sum = load(sums + j, lanes);
        if (bias != nullptr) sum = sum + load(bias + first + j, lanes);
        store(out + j, sum, lanes);
      });
    }
  }
}
