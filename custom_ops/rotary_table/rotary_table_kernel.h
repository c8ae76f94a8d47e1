// RotaryTable on raw pointers, see rotary_table.h. A thread owns whole positions; 8 bytes written an entry.
// The loop over frequencies is arithmetic without branches on doubles and their bits, which the compiler vectorises.

// second where `odd` is odd, else first
ONNXFUSE_INLINE int64_t choose(int64_t odd, double first, double second) {
  const int64_t mask = -(odd & 1);
  return (bit_cast<int64_t>(first) & ~mask) | (bit_cast<int64_t>(second) & mask);
}

ONNXFUSE_INLINE double negate_if_bit_1(int64_t flags, int64_t bits) {
  constexpr uint64_t kSign = uint64_t{1} << 63;
  return bit_cast<double>((static_cast<uint64_t>(flags) << 62 & kSign) ^ static_cast<uint64_t>(bits));
}

inline void rotary_table_position(float position, const float* __restrict inv_freq, float scale,
                                  float* __restrict cosines, float* __restrict sines, int64_t frequencies) {
  // x = n pi / 2 + r. pi / 2 in two parts: the first has 25 bits, so that n times it is exact.
  constexpr double kHalfPiHigh = 0x1.921fb5p0, kHalfPiLow = 0x1.110b4611a6263p-26, kTwoByPi = 0x1.45f306dc9c883p-1;
  // Adding 1.5 * 2^52 leaves no bits for a fraction, and n in the lowest bits.
  constexpr double kToInteger = 0x1.8p52;
  for (int64_t i = 0; i < frequencies; ++i) {
    const float angle = position * inv_freq[i];
    const double x = angle, shifted = x * kTwoByPi + kToInteger, n = shifted - kToInteger;
    const double r = (x - n * kHalfPiHigh) - n * kHalfPiLow, z = r * r;
    // Taylor series to r^11 and r^12; on [-pi / 4, pi / 4] the remainders are below 2^-36.
    double s = -1.0 / 39916800, c = 1.0 / 479001600;
    s = s * z + 1.0 / 362880, c = c * z - 1.0 / 3628800;
    s = s * z - 1.0 / 5040, c = c * z + 1.0 / 40320;
    s = s * z + 1.0 / 120, c = c * z - 1.0 / 720;
    s = s * z - 1.0 / 6, c = c * z + 1.0 / 24;
    s = s * z * r + r, c = (c * z - 0.5) * z + 1;
    const int64_t quadrant = bit_cast<int64_t>(shifted);
    cosines[i] = static_cast<float>(negate_if_bit_1(quadrant + 1, choose(quadrant, c, s))) * scale;
    sines[i] = static_cast<float>(negate_if_bit_1(quadrant, choose(quadrant, s, c))) * scale;
  }
}

inline void rotary_table_positions(const int64_t* positions, int64_t count, const float* inv_freq, float scale,
                                   float* cosines, float* sines, int64_t frequencies) {
  float fastest = 0;
  for (int64_t i = 0; i < frequencies; ++i) fastest = std::max(fastest, std::fabs(inv_freq[i]));
  for (int64_t k = 0; k < count; ++k, cosines += frequencies, sines += frequencies) {
    const float position = static_cast<float>(positions[k]);
    if (std::fabs(position) * fastest <= kQuickAngle) {
      rotary_table_position(position, inv_freq, scale, cosines, sines, frequencies);
      continue;
    }
    for (int64_t i = 0; i < frequencies; ++i) {
      const double angle = position * inv_freq[i];
      cosines[i] = static_cast<float>(std::cos(angle)) * scale;
      sines[i] = static_cast<float>(std::sin(angle)) * scale;
    }
  }
}
