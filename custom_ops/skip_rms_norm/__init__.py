"""SkipRMSNorm: sum = x + skip; y = RMSNorm(sum)."""

OPERATOR = "SkipRMSNorm"
