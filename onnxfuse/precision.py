"""A condition on the Casts inside a match."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxfuse.fusion import Match

WIDE = {ir.DataType.FLOAT, ir.DataType.DOUBLE}


def rounds_no_further(m: Match) -> Iterator[tuple[bool, str]]:
    """No Cast inside the match rounds to a dtype that neither its inputs nor its outputs have: the operator doesn't."""
    inputs = [capture.value for capture in m.captured.values() if not capture.is_constant]
    known = WIDE | {m.facts.dtype(value) for value in (*inputs, *m.outputs)}
    for node in m.nodes:
        if node.op_type == "Cast" and not node.domain:
            to = m.facts.dtype(node.outputs[0])
            yield to in known, f"{node.name!r} rounds to {str(to).lower()} in between, the operator does not"
