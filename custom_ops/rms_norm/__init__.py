"""RMSNorm: y = x / sqrt(mean(x^2) + epsilon) * weight, over the last dimension (Zhang & Sennrich, arXiv:1910.07467)."""

OPERATOR = "RMSNorm"
