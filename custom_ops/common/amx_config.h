// What AMX's registers hold: eight tiles of up to 16 rows of 64 bytes.
#pragma once

#include <cstdint>

namespace onnxfuse::amx {

// As the instruction that configures them reads it. Register numbers are immediates. Here 0 and 1 hold the sums of
// columns 0-15 and 16-31, 2 and 3 others of the same columns, 4 and 5 rows of A, 6 and 7 the columns of W.
struct __attribute__((packed)) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};

  // The number of rows in registers 0, 1 and 4, and in 2, 3 and 5.
  TileConfig(int64_t low, int64_t high) {
    for (const int i : {0, 1, 4}) rows[i] = static_cast<uint8_t>(low);
    for (const int i : {2, 3, 5}) rows[i] = static_cast<uint8_t>(high);
  }
};

}  // namespace onnxfuse::amx
