// What is done to the rows before the matrix products of GatedMLP and to the sums of these, see gated_mlp.h.
#include "common/round_kernel.h"
#include "rms_norm/entering_rows_kernel.h"

// The standard normal distribution function, (1 + erf(x / sqrt 2)) / 2. For t = |x| it is e^(-t^2/2) q(t) or one minus
// that, with q(t) = p(s) / (t + 2.5) and s = (t - 2.5) / (t + 2.5); p was fitted over 0 <= t <= 15 to 1.5e-8 relative;
// beyond, e^(-t^2/2) is 0 in float32.
ONNXFUSE_INLINE Vec normal_distribution(Vec x) {
  const Vec t = min(splat(15.0f), abs(x)), inverse = splat(1) / (t + splat(2.5f)), s = (t - splat(2.5f)) * inverse;
  Vec p = splat(-1.5770350e-4f);
  p = fma(p, s, splat(-3.1162458e-4f));
  p = fma(p, s, splat(6.8441342e-4f));
  p = fma(p, s, splat(2.5239345e-3f));
  p = fma(p, s, splat(-1.6008300e-3f));
  p = fma(p, s, splat(-1.6386187e-2f));
  p = fma(p, s, splat(9.2358757e-3f));
  p = fma(p, s, splat(1.3198698e-1f));
  p = fma(p, s, splat(-4.3369201e-1f));
  p = fma(p, s, splat(7.0665663e-1f));
  const Vec tail = exp(splat(-0.5f) * t * t) * p * inverse;
  return select(less(x, splat(0)), tail, splat(1) - tail);
}

template <Activation kActivation>
ONNXFUSE_INLINE Vec activate(Vec x) {
  if constexpr (kActivation == Activation::kSilu) {
    return x * sigmoid(x);
  } else if constexpr (kActivation == Activation::kGelu) {
    return x * normal_distribution(x);
  } else {
    // (1 + tanh(z)) / 2 = sigmoid(2 z), z = sqrt(2 / pi) (x + 0.044715 x^3)
    return x * sigmoid(x * fma(splat(0.0713548163f), x * x, splat(1.59576912f)));
  }
}

// Replaces the sums of the gate by act(gate + gate_bias) * (up + up_bias).
template <Activation kActivation, typename T>
void gate_block(const GemmBlock& block, const T* gate_bias, const T* up_bias, int64_t columns) {
  for (int64_t panel = block.first_panel; panel < block.first_panel + block.panels; ++panel) {
    const int64_t first = panel * kPanel, count = std::min(kPanel, columns - first);
    for (int64_t row = block.first_row; row < block.first_row + block.rows; ++row) {
      float *gate = block.row(0, panel, row), *up = block.row(1, panel, row);
      for_lanes(count, [&](int64_t j, auto lanes) {
        Vec g = load(gate + j, lanes), u = load(up + j, lanes);
        if (gate_bias != nullptr) g = g + load(gate_bias + first + j, lanes);
        if (up_bias != nullptr) u = u + load(up_bias + first + j, lanes);
        store(gate + j, activate<kActivation>(g) * u, lanes);
      });
    }
  }
}
