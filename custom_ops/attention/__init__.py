"""Attention: grouped-query softmax attention with a key-value cache, masks and bias (Vaswani, arXiv:1706.03762)."""

OPERATOR = "Attention"
