"""Linear: y_i = h W_i + b_i for up to three weights; h is x, behind a residual addition and an RMSNorm if wanted."""

OPERATOR = "Linear"
