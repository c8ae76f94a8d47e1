// RotaryTable on raw pointers, see rotary_table.h. A thread owns whole positions; 8 bytes written an entry.
// The loop over frequencies is plain double arithmetic without branches, which the compiler vectorises.

inline void rotary_table_position(float position, const float* inv_freq, float scale, float* cosines, float* sines,
                                  int64_t frequencies) {
  // x = n pi / 2 + r. pi / 2 in two parts: the first has 25 bits, so that n times it is exact.
  constexpr double kHalfPiHigh = 0x1.921fb5p0, kHalfPiLow = 0x1.110b4611a6263p-26;
  constexpr double kToInteger = 0x1.8p52;  // adding it leaves no bits for a fraction
  for (int64_t i = 0; i < frequencies; ++i) {
    const float angle = position * inv_freq[i];
    const double x = angle;
    const double n = (x * 0.63661977236758134308 + kToInteger) - kToInteger;
    const double r = (x - n * kHalfPiHigh) - n * kHalfPiLow, z = r * r;
    // Taylor series on [-pi / 4, pi / 4]: the remainders are below 2^-37.
    const double s = r + r * z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880 - z / 39916800))));
    const double c =
        1 + z * (-0.5 + z * (1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320 - z / 3628800 + z * z / 479001600))));
    const int32_t quadrant = static_cast<int32_t>(n);
    const bool swap = quadrant & 1;
    const double cosine = swap ? s : c, sine = swap ? c : s;
    cosines[i] = static_cast<float>((quadrant + 1) & 2 ? -cosine : cosine) * scale;
    sines[i] = static_cast<float>(quadrant & 2 ? -sine : sine) * scale;
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
