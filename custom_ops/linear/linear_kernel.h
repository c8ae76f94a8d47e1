// What Linear does to its rows before the products and to the sums of these, see linear.h.
#include "common/round_kernel.h"
#include "rms_norm/entering_rows_kernel.h"
