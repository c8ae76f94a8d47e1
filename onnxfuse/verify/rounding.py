"""What rounded weights cost: the error of a fused model before and after, against the model in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxfuse import model_io
from onnxfuse.errors import UsageError
from onnxfuse.narrow import Narrowed
from onnxfuse.report import Rounding, RoundingCheck
from onnxfuse.verify.cache import SharedCache
from onnxfuse.verify.compare import defined, difference
from onnxfuse.verify.feeds import draw, grid
from onnxfuse.verify.float64 import in_double_precision
from onnxfuse.verify.interface import Interface, Point
from onnxfuse.verify.model import Arrays, Model, Ticks, fitted, reference_outputs
from onnxfuse.verify.sessions import Session

FLOAT64_LIMIT = 1 << 30  # bytes of weights up to which a model is also run in double precision


def measure(
    original: Model,
    exact: ir.Model,
    rounded: ir.Model,
    narrowed: Narrowed,
    *,
    library: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Rounding:
    """Run `exact`, the fused model, and `rounded`, with the weights of `narrowed`, on generated inputs.

    The reference is `original` in double precision. Where that is too large or ONNX Runtime lacks a double kernel for
    it, it is `original` as it is; then the error before rounding is the difference of two models of one precision.
    """
    graph = model_io.load(original)
    interface = Interface.of(graph)
    points = grid(interface)
    ticks = Ticks(4 * len(points), progress)
    cache = SharedCache.of(original)
    session = Session(original)
    interface = fitted(interface, points, session)
    expected, _ = reference_outputs(session, interface, points, cache, ticks)
    del session
    in_float64 = _in_float64(graph, interface, list(expected), cache, ticks)
    expected = in_float64 or expected
    before, after = (_errors(model, library, interface, expected, ticks) for model in (exact, rounded))
    allowed = narrowed.tolerance
    checks = []
    for name, was in before.items():
        now = after[name]
        passed = now.rms <= allowed + was.rms
        checks.append(RoundingCheck(name, was.worst, was.rms, now.worst, now.rms, allowed, passed, str(now.point)))
    return Rounding("float64" if in_float64 else "original", dict(narrowed.matrices), tuple(checks))


class _DoubleSession(Session):
    """Takes the inputs of the original for a model in double precision."""

    def run(self, feed: Arrays) -> Arrays:
        return super().run(
            {n: x.astype(np.float64) if np.issubdtype(x.dtype, np.floating) else x for n, x in feed.items()}
        )


def _in_float64(
    graph: ir.Model, interface: Interface, points: Sequence[Point], cache: SharedCache, ticks: Ticks
) -> dict[Point, Arrays] | None:
    weights = (value.const_value for part in graph.graphs() for value in part.initializers.values())
    if sum(tensor.nbytes for tensor in weights if tensor is not None) > FLOAT64_LIMIT:
        return None
    try:
        session = _DoubleSession(in_double_precision(graph))
        return reference_outputs(session, interface, points, cache, ticks)[0]
    except UsageError:  # an operator of the model has no double kernel
        return None


@dataclass
class _Error:
    """Of one output: the largest of a value, and that of all values at a point."""

    worst: float = 0.0
    rms: float = -1.0
    point: Point | None = None

    def see(self, wanted: np.ndarray, got: np.ndarray, point: Point) -> None:
        counts = defined(wanted.shape, point)
        self.worst = max(self.worst, difference(wanted, got, counts).max_rel)
        wanted, got = wanted.astype(np.float64), got.astype(np.float64)
        finite = np.isfinite(wanted)
        if counts is not None:
            finite &= np.broadcast_to(counts, wanted.shape)
        off, size = np.sum(np.square(got[finite] - wanted[finite])), np.sum(np.square(wanted[finite]))
        rms = math.sqrt(off / size) if size else math.inf if off else 0.0
        rms = math.inf if math.isnan(rms) else rms
        if rms > self.rms:
            self.rms, self.point = rms, point


def _errors(
    model: ir.Model, library: Path | None, interface: Interface, expected: dict[Point, Arrays], ticks: Ticks
) -> dict[str, _Error]:
    session = Session(model, library=library)
    cache = SharedCache.of(model)
    errors: dict[str, _Error] = {}
    for point, outputs in expected.items():
        actual = cache.run(session, draw(interface, point), point)
        for name, wanted in outputs.items():
            if np.issubdtype(wanted.dtype, np.floating):
                errors.setdefault(name, _Error()).see(wanted, actual[name], point)
        ticks.advance()
    return errors
