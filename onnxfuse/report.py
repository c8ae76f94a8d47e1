"""What a rewrite did, as data first (`Report.to_dict` is the JSON) and as text second.

Counts are taken from the final graph, subgraphs and model-local functions of other domains included, never from the
number of times a rule fired.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import onnx_ir as ir
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxfuse.explain import NearMiss, Refused
from onnxfuse.operators import OWN


def _finite(data: dict[str, object]) -> dict[str, object]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in data.items()
    }


@dataclass(frozen=True)
class OutputCheck:
    """How one output of the fused model compares with the original's.

    `max_abs` is the largest difference, `max_rel` the largest one relative to the value or to the output's root mean
    square, whichever is larger; `worst` is the index and `feed` the inputs where `max_rel` was found.
    """

    name: str
    max_abs: float
    max_rel: float
    tolerance: float
    passed: bool
    worst: tuple[int, ...] = ()
    feed: str = ""
    compared: int = 0

    def to_dict(self) -> dict[str, object]:
        """The JSON form; a difference that no number measures (another shape, NaN) is null."""
        return _finite(asdict(self))


def in_words(matrices: dict[str, int]) -> str:
    """How many matrices have which dtype: "14 matrices in int8 and 1 matrix in bfloat16"."""
    return " and ".join(
        f"{count} {'matrix' if count == 1 else 'matrices'} in {dtype}" for dtype, count in matrices.items()
    )


@dataclass(frozen=True)
class RoundingCheck:
    """The error of one output before and after the weights were rounded.

    `unrounded` and `rounded` are the largest differences from the reference, relative to the value or to the output's
    root mean square, whichever is larger; the `_rms` are root mean squares relative to the output's, of the worst
    inputs. `tolerance` is for `rounded_rms`, which `feed` gives.
    """

    name: str
    unrounded: float
    unrounded_rms: float
    rounded: float
    rounded_rms: float
    tolerance: float
    passed: bool
    feed: str = ""

    def to_dict(self) -> dict[str, object]:
        """The JSON form; a difference that no number measures is null."""
        return _finite(asdict(self))


@dataclass(frozen=True)
class Rounding:
    """What rounded weights cost in precision; `reference` is "float64", or "original" where that cannot be had.

    `matrices` counts them by dtype, "bfloat16" or "int8".
    """

    reference: str
    matrices: dict[str, int]
    outputs: tuple[RoundingCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every output is as near as rounded weights allow."""
        return all(check.passed for check in self.outputs)

    def to_dict(self) -> dict[str, object]:
        """The JSON form."""
        return {**asdict(self), "outputs": [check.to_dict() for check in self.outputs]}


@dataclass(frozen=True)
class Verification:
    """How the result was verified: `mode` is "match", "model" or "none"; `passed` is None when nothing was run.

    `outputs` compare the fused model with the original, before weights are rounded; `rounding` tells what that changes.
    """

    mode: str
    passed: bool | None = None
    outputs: tuple[OutputCheck, ...] = ()
    notes: tuple[str, ...] = ()
    guilty: tuple[str, ...] = ()
    rounding: Rounding | None = None

    def to_dict(self) -> dict[str, object]:
        """The JSON form."""
        rounding = None if self.rounding is None else self.rounding.to_dict()
        return {**asdict(self), "outputs": [check.to_dict() for check in self.outputs], "rounding": rounding}


@dataclass
class Report:
    """Everything `onnxfuse rewrite` has to say."""

    model: str
    output: str | None
    target: str
    nodes_before: int
    nodes_after: int
    fused: dict[str, int] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    near_misses: list[NearMiss] = field(default_factory=list)
    verification: Verification = field(default_factory=lambda: Verification("none"))
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """The report as JSON-ready data, its keys as documented for `--report`."""
        return {
            "model": self.model,
            "output": self.output,
            "target": self.target,
            "nodes": {"before": self.nodes_before, "after": self.nodes_after},
            "fused": dict(sorted(self.fused.items())),
            "refused": [asdict(entry) for entry in self.refused],
            "near_misses": [asdict(entry) for entry in self.near_misses],
            "verification": self.verification.to_dict(),
            "seconds": {name: round(seconds, 3) for name, seconds in self.seconds.items()},
        }

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def print(self, console: Console, *, verbose: bool = False) -> None:
        """The report as text for people; `verbose` adds refusals and near misses one by one."""
        console.print(_summary(self))
        if self.fused:
            table = Table(box=None, pad_edge=False, show_header=False)
            table.add_column(style="green")
            table.add_column(justify="right")
            for name, count in sorted(self.fused.items()):
                table.add_row(f"  {name}", str(count))
            console.print(table)
        else:
            console.print("  nothing fused; onnxfuse explain says why", style="yellow")
        _print_refusals(console, self.refused, verbose)
        _print_near_misses(console, self.near_misses, verbose)
        print_verification(console, self.verification)


def node_count(model: ir.Model) -> int:
    """Number of nodes of the graph and its subgraphs, Constant nodes aside; bodies of fused nodes do not count."""
    return sum(node.op_type != "Constant" for node in _nodes(model))


def fused_count(model: ir.Model) -> dict[str, int]:
    """How many nodes of each onnxfuse operator `model` holds; those inside bodies of onnxfuse blocks do not count."""
    return dict(Counter(node.op_type for node in _nodes(model) if node.domain == OWN))


def _nodes(model: ir.Model) -> Iterable[ir.Node]:
    yield from ir.traversal.RecursiveGraphIterator(model.graph)
    for function in model.functions.values():
        if function.domain != OWN:
            yield from ir.traversal.RecursiveGraphIterator(function)


def _summary(report: Report) -> Text:
    text = Text()
    text.append(report.model, style="bold")
    if report.output:
        text.append(" -> ").append(report.output, style="bold")
    seconds = sum(report.seconds.values())
    text.append(f"  {report.nodes_before} -> {report.nodes_after} nodes, {report.target}, {seconds:.1f} s")
    return text


def _print_refusals(console: Console, refused: list[Refused], verbose: bool) -> None:
    if verbose:
        for entry in refused:
            print_refusal(console, entry)
        return
    reasons = Counter((entry.fusion, entry.reason) for entry in refused)
    for (fusion, reason), count in reasons.items():
        console.print(Text(f"  refused {fusion} x{count}: {reason}", style="yellow"))


def _print_near_misses(console: Console, near_misses: list[NearMiss], verbose: bool) -> None:
    if verbose:
        for entry in near_misses:
            print_near_miss(console, entry)
    elif near_misses:
        console.print(Text(f"  {_count(len(near_misses), 'near miss', 'near misses')}; onnxfuse explain shows them"))


def print_refusal(console: Console, refused: Refused) -> None:
    """One refusal: where in the model, why, and the line that says so."""
    console.print(Text(f"  refused {refused.fusion} at {refused.node}", style="yellow"))
    console.print(Text(f"    {refused.reason}" + (f"  ({refused.where})" if refused.where else "")))


def print_near_miss(console: Console, miss: NearMiss) -> None:
    """One near miss: how far the pattern agreed, the line where it ends, and why each alternative failed there."""
    agreed = f"{miss.matched} of {miss.wanted} operators matched"
    console.print(Text(f"  near miss {miss.fusion} at {miss.node}: {agreed}", style="cyan"))
    console.print(Text(f"    {miss.where}  {miss.source.strip()}"))
    console.print(Text(f"    {miss.message}"))
    console.print(Text(f"    at {miss.at}"))
    for alternative, outcome in miss.tried:
        console.print(Text(f"    tried {alternative}  {outcome}"))


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def print_verification(console: Console, verification: Verification) -> None:
    """The verdict, a table of outputs where the whole model was run, and the notes."""
    if verification.passed is None:
        console.print("  not verified", style="yellow")
    else:
        verdict = "passed" if verification.passed else "FAILED"
        console.print(
            Text(f"  verification ({verification.mode}): {verdict}", style="green" if verification.passed else "red")
        )
    if verification.outputs:
        console.print(_outputs_table(verification.outputs))
    if verification.rounding is not None:
        rounding = verification.rounding
        exact = "float64" if rounding.reference == "float64" else "the original"
        console.print(f"  error with {in_words(rounding.matrices)}, against {exact}:")
        console.print(_rounding_table(rounding.outputs))
    for name in verification.guilty:
        console.print(Text(f"  the difference comes from {name}", style="red"))
    for note in verification.notes:
        console.print(Text(f"  note: {note}"))


def _rounding_table(outputs: tuple[RoundingCheck, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("  output", "unrounded max", "rms", "rounded max", "rms", "tolerance of rms", "", "worst at"):
        table.add_column(heading, justify="left" if heading in ("  output", "", "worst at") else "right")
    for check in outputs:
        numbers = (check.unrounded, check.unrounded_rms, check.rounded, check.rounded_rms)
        verdict = Text("ok", style="green") if check.passed else Text("TOO FAR", style="red")
        table.add_row(
            Text(f"  {check.name}"),
            *(f"{number:.2e}" for number in numbers),
            f"{check.tolerance:.1e}",
            verdict,
            Text(check.feed),
        )
    return table


def _outputs_table(outputs: tuple[OutputCheck, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("  output", "max abs", "max rel", "tolerance", "values", "", "worst at"):
        table.add_column(heading, justify="left" if heading in ("  output", "", "worst at") else "right")
    for check in outputs:
        at = f"{list(check.worst)} of {check.feed}" if check.worst and check.max_abs else ""
        verdict = Text("ok", style="green") if check.passed else Text("DIFFERS", style="red")
        table.add_row(
            Text(f"  {check.name}"),
            f"{check.max_abs:.2e}",
            f"{check.max_rel:.2e}",
            f"{check.tolerance:.1e}",
            str(check.compared),
            verdict,
            Text(at),
        )
    return table
