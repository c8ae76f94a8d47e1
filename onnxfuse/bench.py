"""Timing an original and a fused model against each other in ONNX Runtime.

Both sessions get the same options and all of ONNX Runtime's optimisations; the fused one also the operator library. A
shared cache is one buffer, bound as past and present. The runs alternate, so that a machine that slows down slows both;
the medians are what a user feels, the minima what the machine can do.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from onnxfuse import model_io
from onnxfuse.errors import UsageError
from onnxfuse.verify.cache import SharedCache
from onnxfuse.verify.feeds import draw
from onnxfuse.verify.interface import FREE_SIZES, Interface, Point
from onnxfuse.verify.model import same_interface
from onnxfuse.verify.sessions import Session, first_line, ort_value

WARM_UPS = 2
REPEATS = 10
SECONDS = 10.0  # after which a row has enough runs, though at least three


@dataclass(frozen=True)
class Row:
    """One size: seconds of a run (`original`, `fused` are medians) and the ratio of the medians."""

    prompt: int
    past: int
    batch: int
    repeats: int
    original: float
    fused: float
    original_min: float
    fused_min: float

    @property
    def ratio(self) -> float:
        """How many times faster the fused model is."""
        return self.original / self.fused

    @property
    def ratio_min(self) -> float:
        """The same for the fastest runs."""
        return self.original_min / self.fused_min

    @property
    def tokens_per_second(self) -> float:
        """New tokens a second in the fused model."""
        return self.prompt * self.batch / self.fused

    def to_dict(self) -> dict[str, object]:
        """The JSON form."""
        derived = {name: getattr(self, name) for name in ("ratio", "ratio_min", "tokens_per_second")}
        return {**asdict(self), **derived}


def bench(
    original: str | os.PathLike,
    fused: str | os.PathLike,
    *,
    prompts: Sequence[int] = (1, 128),
    pasts: Sequence[int] = (0, 1024),
    batch: int = 1,
    provider: str = "cpu",
    threads: int = 0,
    repeats: int = REPEATS,
    library: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Time both models at every prompt length and past length that the original accepts.

    Raises
    ------
    UsageError
        A model cannot be loaded, the interfaces differ, or the original accepts none of the sizes.
    """
    same_interface(original, fused)
    interface = Interface.of(model_io.load(original))
    points = dict.fromkeys(interface.settle(Point(batch, prompt, past)) for past in pasts for prompt in prompts)
    caches = SharedCache.of(original), SharedCache.of(fused)
    sides = [
        Session(original, optimised=True, provider=provider, threads=threads),
        Session(fused, optimised=True, provider=provider, threads=threads, library=library),
    ]
    rows, reason = [], "no sizes were given"
    for done, point in enumerate(points):
        if progress is not None:
            progress(done, len(points))
        feed = _accepted(interface, point, sides[0], caches[0])
        if isinstance(feed, str):
            reason = feed
            continue
        steps = [
            _step(side, cache.feed(feed, point, spare=0), cache.presents)
            for side, cache in zip(sides, caches, strict=True)
        ]
        rows.append(_row(point, steps, repeats))
    if not rows:
        raise UsageError(f"the original model runs on none of these sizes: {reason}")
    return rows


def _accepted(interface: Interface, point: Point, session: Session, cache: SharedCache) -> dict[str, np.ndarray] | str:
    """A feed that `session` accepts once its cache is put into place, or why it accepts none."""
    reason = ""
    for free in FREE_SIZES if interface.has_free_sizes else (interface.free,):
        feed = draw(replace(interface, free=free), point)
        try:
            cache.run(session, feed, point)
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            reason = first_line(error)
            continue
        return feed
    return reason


def _step(side: Session, feed: dict[str, np.ndarray], presents: dict[str, str]) -> Callable[[], object]:
    """A run of `side` whose inputs are in place already; each of `presents` is written over its past."""
    values = {name: ort_value(feed[name]) for name in side.input_names}
    if not presents:
        return lambda: side.session.run_with_ort_values(side.outputs, values)
    binding = side.session.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    pasts = {present: past for past, present in presents.items()}
    for name in side.outputs:
        if name in pasts:
            binding.bind_ortvalue_output(name, values[pasts[name]])
        else:
            binding.bind_output(name)
    return lambda: side.session.run_with_iobinding(binding)


def _row(point: Point, steps: Sequence[Callable[[], object]], repeats: int) -> Row:
    for step in steps:
        for _ in range(WARM_UPS):
            step()
    seconds: list[list[float]] = [[], []]
    start = time.perf_counter()
    for repeat in range(repeats):
        for index in (0, 1) if repeat % 2 == 0 else (1, 0):
            begin = time.perf_counter()
            steps[index]()
            seconds[index].append(time.perf_counter() - begin)
        if repeat >= 2 and time.perf_counter() - start > SECONDS:
            break
    first, second = seconds
    return Row(
        point.length,
        point.past,
        point.batch,
        len(first),
        statistics.median(first),
        statistics.median(second),
        min(first),
        min(second),
    )


def print_rows(console: Console, rows: Sequence[Row]) -> None:
    """The rows as a table, times in milliseconds."""
    table = Table(box=None, pad_edge=False)
    headings = ("prompt", "past", "batch", "original ms", "fused ms", "ratio", "min ratio", "tokens/s", "runs")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row.prompt),
            str(row.past),
            str(row.batch),
            f"{row.original * 1e3:.2f}",
            f"{row.fused * 1e3:.2f}",
            f"{row.ratio:.2f}",
            f"{row.ratio_min:.2f}",
            f"{row.tokens_per_second:.0f}",
            str(row.repeats),
        )
    console.print(table)
