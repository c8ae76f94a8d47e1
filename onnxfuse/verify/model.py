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
from onnxfuse.narrow import held
from onnxfuse.report import OutputCheck, Verification, in_words
from onnxfuse.verify.cache import SharedCache
from onnxfuse.verify.compare import TOLERANCES, Difference, coarsest_arithmetic, defined, difference
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
        Largest relative difference accepted (see `compare.difference`); default by the model's arithmetic.
    points : sequence of Point, optional
        Sizes to try; default the whole grid that the inputs allow. Padded batches are compared on the tokens that are
        not padding.
    progress : callable(done, total), optional

    Raises
    ------
    UsageError
        A model cannot be loaded, or the original runs on none of the generated inputs.
    """
    graph = model_io.load(original)
    interface = Interface.of(graph)
    if interface.unknown:
        names = ", ".join(interface.unknown)
        raise UsageError(f"no values can be drawn for inputs without a known dtype and rank: {names}")
    same_interface(original, fused)
    points = grid(interface) if points is None else points
    caches = SharedCache.of(original), SharedCache.of(fused)
    ways = {"as function bodies": None} | ({"with the library": library} if library is not None else {})
    ticks = Ticks(len(points) * (1 + len(ways)), progress)

    reference = _reference(original, provider, threads)
    interface = fitted(interface, points, reference)
    expected, notes = reference_outputs(reference, interface, points, caches[0], ticks)
    del reference
    if library is None:
        notes.append("the operator library was not used: only function bodies were compared")

    worst = _Worst(TOLERANCES[coarsest_arithmetic(graph)] if tolerance is None else tolerance)
    for way, path in ways.items():
        try:
            session = Session(fused, library=path, provider=provider, threads=threads)
        except UsageError as error:
            return Verification("model", False, notes=(*notes, f"{way}: {error}"))
        for point, outputs in expected.items():
            feed = f"{point}, {way}"
            try:
                actual = caches[1].run(session, draw(interface, point), point)
            except Exception as error:  # ONNX Runtime raises a dozen unrelated types
                return Verification(
                    "model", False, notes=(*notes, f"the fused model fails on {feed}: {first_line(error)}")
                )
            worst.see(outputs, actual, point, feed)
            ticks.advance()
        del session
    checks = worst.checks()
    passed = all(check.passed for check in checks)
    if not passed and (narrowed := held(model_io.load(fused), beside=graph)).matrices:
        notes.append(
            f"{in_words(narrowed.matrices)} explain a difference of up to {narrowed.largest:.2g}: pass that as the "
            "tolerance; rewrite --verify model is stricter, by their root mean square"
        )
    return Verification("model", passed, checks, tuple(notes))


def _reference(original: Model, provider: str, threads: int) -> Session:
    try:
        return Session(original, provider=provider, threads=threads)
    except UsageError as error:
        hint = "what does not run here can't be compared as a whole; --verify match proves each fusion by itself"
        raise UsageError(f"{error}: {hint}") from error


class Ticks:
    """Counts runs for a progress bar."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self.total = total
        self.progress = progress
        self.done = 0

    def advance(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)


def reference_outputs(
    session: Session, interface: Interface, points: Sequence[Point], cache: SharedCache, ticks: Ticks
) -> tuple[dict[Point, Arrays], list[str]]:
    """The original's outputs at every point that it accepts, and which those are.

    A graph that hides scores by -infinity makes NaN of a padding token, which its next layer spreads to all others: at
    such a point there is nothing to compare with.
    """
    expected: dict[Point, Arrays] = {}
    rejected: dict[str, list[Point]] = {}
    spread: list[Point] = []
    for point in points:
        try:
            outputs = cache.run(session, draw(interface, point), point)
            if point.padding != "none" and _spreads_nan(outputs, point):
                spread.append(point)
            else:
                expected[point] = outputs
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            rejected.setdefault(first_line(error), []).append(point)
        ticks.advance()
    if not expected:
        reason = "NaN spreads from padding" if spread else next(iter(rejected), "no input sizes to try")
        raise UsageError(f"the original model runs on none of the generated inputs: {reason}")
    notes = [f"{len(expected)} inputs: {_listed(list(expected))}"]
    notes += [f"the original rejects {_listed(where)}: {reason}" for reason, where in rejected.items()]
    if spread:
        notes.append(f"not compared, because the original lets NaN spread from padding: {_listed(spread)}")
    return expected, notes


def _spreads_nan(outputs: Arrays, point: Point) -> bool:
    """Whether a value that does not belong to a padding token is NaN."""
    for array in outputs.values():
        counts = defined(array.shape, point)
        if (np.isnan(array.astype(np.float64)) & (True if counts is None else counts)).any():
            return True
    return False


class _Worst:
    """The largest difference of each output so far."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.found: dict[str, tuple[Difference, str]] = {}
        self.compared: dict[str, int] = {}
        self.dtypes: dict[str, str] = {}

    def see(self, expected: Arrays, actual: Arrays, point: Point, feed: str) -> None:
        for name, wanted in expected.items():
            now = difference(wanted, actual[name], defined(wanted.shape, point))
            self.dtypes[name] = wanted.dtype.name
            self.compared[name] = self.compared.get(name, 0) + now.compared
            if name not in self.found or now.max_rel > self.found[name][0].max_rel:
                self.found[name] = (now, feed)

    def checks(self) -> tuple[OutputCheck, ...]:
        """The verdict on every output; integers and booleans have to be equal."""
        checks = []
        for name, (worst, feed) in self.found.items():
            allowed = self.tolerance if self.dtypes[name] in TOLERANCES else 0.0
            passed = worst.max_rel <= allowed
            checks.append(
                OutputCheck(name, worst.max_abs, worst.max_rel, allowed, passed, worst.worst, feed, self.compared[name])
            )
        return tuple(checks)


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


def fitted(interface: Interface, points: Sequence[Point], session: Session) -> Interface:
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
