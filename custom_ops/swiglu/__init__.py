"""SwiGLU: y = gate * sigmoid(gate) * up (Shazeer, arXiv:2002.05202)."""

OPERATOR = "SwiGLU"
