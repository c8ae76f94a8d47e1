"""RotaryTable: cos and sin of position * inv_freq, times scale."""

OPERATOR = "RotaryTable"
