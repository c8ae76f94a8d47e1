"""Embedding: the rows of a table that ids select."""

OPERATOR = "Embedding"
