"""RotaryEmbedding: rotates pairs of features of every head by the angles of a table (Su et al., arXiv:2104.09864)."""

OPERATOR = "RotaryEmbedding"
