"""Comparing two whole models on generated inputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxfuse import model_io
from onnxfuse.errors import UsageError
from onnxfuse.report import OutputCheck, Verification
from onnxfuse.verify.compare import TOLERANCES, Difference, defined, difference
from onnxfuse.verify.feeds import draw, grid
from onnxfuse.verify.interface import FREE_SIZES, Interface, Point
from onnxfuse.verify.sessions import Session, first_line

Model = str | os.PathLike | ir.Model
Arrays = dict[str, np.ndarray]


def validate(
    original: Model,
    fused: Model,
    *,
    tolerance: float | None = None,
    points: Sequence[Point] | None = None,
    library: Path | None = None,
    provider: str = "cpu",
    threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Run both models on the same generated inputs and compare every output.

    The reference is `original` without any of ONNX Runtime's optimisations. `fused` runs without the operator library,
    as function bodies, and where `library` is given with it as well. One session is open at a time.

    Parameters
    ----------
    tolerance : float, optional
        Largest relative difference accepted (see `compare.difference`); default by the output's dtype.
    points : sequence of Point, optional
        Sizes to try; default the whole grid that the inputs allow. Padded batches are compared on the tokens that are
        not padding.
    progress : callable(done, total), optional

    Raises
    ------
    UsageError
        A model cannot be loaded, or the original runs on none of the generated inputs.
    """
    interface = Interface.of(model_io.load(original))
    if interface.unknown:
        names = ", ".join(interface.unknown)
        raise UsageError(f"no values can be drawn for inputs without a known dtype and rank: {names}")
    same_interface(original, fused)
    points = grid(interface) if points is None else points
    rounds = [("bodies", None)] + ([("library", library)] if library is not None else [])
    total, done = len(points) * (1 + len(rounds)), 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    reference = Session(original, provider=provider, threads=threads)
    interface = _fitted(interface, points, reference)
    expected: dict[Point, Arrays] = {}
    notes: list[str] = []
    rejected: dict[str, list[Point]] = {}
    for point in points:
        try:
            expected[point] = reference.run(draw(interface, point))
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            rejected.setdefault(first_line(error), []).append(point)
        advance()
    del reference
    if not expected:
        reason = next(iter(rejected), "no input sizes to try")
        raise UsageError(f"the original model runs on none of the generated inputs: {reason}")
    for reason, where in rejected.items():
        notes.append(f"the original rejects {_listed(where)}: {reason}")

    worst: dict[str, tuple[Difference, str]] = {}
    counted: dict[str, int] = {}
    for way, path in rounds:
        session = Session(fused, library=path, provider=provider, threads=threads)
        for point in points:
            if point in expected:
                feed = f"{point}, as function bodies" if way == "bodies" else f"{point}, with the library"
                try:
                    actual = session.run(draw(interface, point))
                except Exception as error:
                    return Verification(
                        "model", False, notes=(*notes, f"the fused model fails on {feed}: {first_line(error)}")
                    )
                for name, wanted in expected[point].items():
                    found = difference(wanted, actual[name], defined(wanted.shape, point))
                    counted[name] = counted.get(name, 0) + found.compared
                    if name not in worst or found.max_rel > worst[name][0].max_rel:
                        worst[name] = (found, feed)
            advance()
        del session
    dtypes = {name: array.dtype.name for name, array in next(iter(expected.values())).items()}
    checks = []
    for name, (found, feed) in worst.items():
        allowed = TOLERANCES.get(dtypes[name], 0.0) if tolerance is None else tolerance
        checks.append(
            OutputCheck(
                name, found.max_abs, found.max_rel, allowed, found.max_rel <= allowed, found.worst, feed, counted[name]
            )
        )
    if library is None:
        notes.append("the operator library was not used: only function bodies were compared")
    notes.insert(0, f"{len(expected)} inputs: {_listed(list(expected))}")
    return Verification("model", all(check.passed for check in checks), tuple(checks), tuple(notes))


def same_interface(original: Model, fused: Model) -> None:
    """Raise UsageError unless both models have inputs and outputs of the same names, order, dtypes and ranks."""
    ours, theirs = model_io.load(original).graph, model_io.load(fused).graph
    for what in ("inputs", "outputs"):
        wanted, got = ([_signature(v) for v in getattr(g, what)] for g in (ours, theirs))
        if wanted != got:
            different = next((f"{a} and {b}" for a, b in zip(wanted, got, strict=False) if a != b), None)
            different = different or f"{len(wanted)} and {len(got)} of them"
            raise UsageError(f"the two models have different {what}: {different}")


def _signature(value: ir.Value) -> str:
    rank = "?" if value.shape is None else len(value.shape)
    return f"{value.name} {value.dtype.name if value.dtype is not None else '?'} of rank {rank}"


def _fitted(interface: Interface, points: Sequence[Point], session: Session) -> Interface:
    """`interface` with the first size for unexplained dimensions that `session` accepts."""
    if interface.has_free_sizes:
        for free in FREE_SIZES:
            candidate = replace(interface, free=free)
            for point in points[:2]:
                try:
                    session.run(draw(candidate, point))
                except Exception:  # rejected: the next size may fit
                    continue
                return candidate
    return interface


def _listed(points: Sequence[Point]) -> str:
    text = "; ".join(map(str, points[:3]))
    return text if len(points) <= 3 else f"{text}; and {len(points) - 3} more"
