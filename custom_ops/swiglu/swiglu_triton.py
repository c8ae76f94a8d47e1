"""SwiGLU as a Triton kernel, the same to the last bit as swiglu_kernel.cuh; compiled by compile_triton.py.

gate, up, y: `count` elements of float32|float16|bfloat16; a program owns BLOCK of them.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def swiglu(gate, up, y, count, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    g = tl.load(gate + i, mask=inside).to(tl.float32)
    u = tl.load(up + i, mask=inside).to(tl.float32)
    # Not tl.exp and `/`: they are off by more than one unit in the last place, the first by the more the larger g is.
    silu = tl.div_rn(g, 1.0 + libdevice.exp(-g))
    tl.store(y + i, (silu * u).to(y.dtype.element_ty), mask=inside)


BLOCK = 2048
COMPILED = {
    "swiglu": {"kernel": swiglu, "signature": "*T, *T, *T, i64", "constants": {"BLOCK": BLOCK}},
    # With 16-byte loads and stores.
    "swiglu_vectors": {"kernel": swiglu, "signature": "*T:16, *T:16, *T:16, i64:16", "constants": {"BLOCK": BLOCK}},
}
