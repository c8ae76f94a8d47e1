"""Comparing a normalised model with its original: the matches are only proven equal to what normalising left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx_ir as ir

from onnxfuse import model_io
from onnxfuse.errors import UsageError
from onnxfuse.normalise.constants import RANDOM
from onnxfuse.report import Verification
from onnxfuse.verify.interface import Interface, Point
from onnxfuse.verify.model import Model, validate

POINTS = (Point(2, 4, 5), Point(1, 1, 0))
LARGEST = 1 << 29  # bytes of weights: with so many both models take as long to load as all matches to be tried


def unchanged(
    original: Model, normalised: ir.Model, *, progress: Callable[[int, int], None] | None = None
) -> Verification:
    """Run both models, without fusions, on two small inputs.

    `passed` is None where they were not compared: the model is too large, draws random numbers or does not run here.
    The notes say which.
    """
    graph = model_io.load(original)
    reason = _obstacle(graph)
    if reason is None:
        interface = Interface.of(graph)
        settled = dict.fromkeys(map(interface.settle, POINTS))
        points = [point for point in settled if point.past >= 0 and point.length >= 1]
        try:
            found = validate(original, normalised, points=points, progress=progress)
        except UsageError as error:
            reason = str(error)
        else:
            worst = max((check.max_rel for check in found.outputs), default=0.0)
            note = f"normalising alone moves no output by more than {worst:.1e} of its size"
            return replace(found, mode="match", **({"outputs": (), "notes": (note,)} if found.passed else {}))
    return Verification("match", None, notes=(f"normalising was not compared with the original: {reason}",))


def _obstacle(graph: ir.Model) -> str | None:
    held = (value.const_value for part in graph.graphs() for value in part.initializers.values())
    size = sum(tensor.nbytes for tensor in held if tensor is not None)
    if size > LARGEST:
        return f"it has {size / 2**30:.1f} GiB of weights; --verify model compares it"
    drawn = next(
        (node.op_type for node in ir.traversal.RecursiveGraphIterator(graph.graph) if node.op_type in RANDOM), ""
    )
    return f"{drawn} draws random numbers" if drawn else None
