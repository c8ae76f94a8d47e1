// RotaryTable: cos = cos(position * inv_freq) * scale, sin = sin(position * inv_freq) * scale.
//
// position_ids: [B, S] int64; inv_freq: [F] float32, in radians a position; cos, sin: [B, S, F] float32.
// Attribute scale: float = 1. Source: Su et al. 2021, arXiv:2104.09864; scale is YaRN's, Peng et al. 2023, 2309.00071.
// Numerics: the position and the angle are rounded to float32, as in the graph; cos and sin of that angle are correct
// to 0.51 ulp at any angle. Errors: position_ids of another rank than 2, inv_freq of another rank than 1.
#pragma once

#include <cstdint>

namespace onnxfuse {

// Up to this angle the quick reduction by multiples of pi / 2 is exact enough; beyond it the kernel asks the C library.
inline constexpr float kQuickAngle = 5e7f;

}  // namespace onnxfuse
