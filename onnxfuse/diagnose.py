"""Near misses: where a fusion that did not match came closest, and why it did not.

The pattern is laid over the graph (see `onnxfuse.alignment`); where everything agrees, the matcher is asked where it
gave up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx_ir as ir

from onnxfuse import mismatch
from onnxfuse.alignment import Aligner, Alignment, Failure, tells
from onnxfuse.explain import NearMiss
from onnxfuse.facts import Facts
from onnxfuse.fusion import Fusion, node_text, value_text
from onnxfuse.matcher import Search, StepLimitReached
from onnxfuse.mismatch import ABSENT, Mismatch
from onnxfuse.order import Places
from onnxfuse.pattern import Absent, Const, Either, Guard, Input, Location, Node, Out, Pattern, walk

LEAST_MATCHED = 2  # one operator alone resembles everything


def near_misses(
    fusion: Fusion, places: Places, aligner: Aligner, explained: Iterable[ir.Node] = ()
) -> list[tuple[ir.Node, NearMiss]]:
    """The `places` where at least half of `fusion` was found, closest first.

    A place that lies mostly inside another one, or among the `explained` nodes, is left out.
    """
    least = max(LEAST_MATCHED, fusion.size / 2)
    close: list[tuple[Alignment, ir.Value]] = []
    telling = [part.node for part in walk(fusion.roots[0]) if isinstance(part, Out) and tells(part.node)]
    if any(map(tells, fusion.roots[0].mandatory)) and not any(wanted.heads & places.operators for wanted in telling):
        return []  # no place can be characteristic, as in a graph that is fused already
    for node in places.of(fusion.heads):
        for value in node.outputs:
            if aligner.count(fusion.roots[0], value) < least:
                continue
            alignment = aligner.align(fusion.roots[0], value)
            if alignment.matched >= max(least, alignment.wanted / 2) and alignment.is_characteristic:
                close.append((alignment, value))
    close.sort(key=lambda pair: pair[0].rank())
    covered = set(explained)
    found = []
    for alignment, value in close:
        own = {node for _, node in alignment.pairs}
        if len(own & covered) * 2 > len(own):
            continue
        failure = alignment.failures[0] if alignment.failures else where_search_ends(fusion, value, aligner.facts)
        if failure is not None:
            covered |= own
            report = _report(fusion, alignment.matched, alignment.wanted, value, failure, aligner.facts)
            found.append((value.producer(), report))
    for alignment, value, failure in _severed(fusion, places, aligner, least):
        own = {node for _, node in alignment.pairs}
        if not own & covered:
            covered |= own
            wanted = max(fusion.size, alignment.matched + 1)
            report = _report(fusion, alignment.matched, wanted, value, failure, aligner.facts)
            found.append((value.producer(), report))
    return found


def _severed(
    fusion: Fusion, places: Places, aligner: Aligner, least: float
) -> Iterator[tuple[Alignment, ir.Value, Failure]]:
    """Where all that an operator of the pattern reads is there, but nothing of its kind reads it.

    The roots of such places are of another kind than the fusion's, where nobody looks for it: silu(gate) + up.
    """
    for user, part in _operands(fusion.roots[0]):
        inside = [inner.node for inner in walk(part) if isinstance(inner, Out)]
        if part.heads is None or len(inside) < least or not any(map(tells, inside)):
            continue
        if not all(wanted.heads & places.operators for wanted in part.mandatory):
            continue
        for node in places.of(part.heads):
            value = node.outputs[0]
            readers = [use.node for use in value.uses()]
            if not readers or any((reader.domain, reader.op_type) in user.heads for reader in readers):
                continue
            if not aligner.fits(part, value):
                continue
            alignment = aligner.align(part, value)
            characteristic = any(tells(found) for found, _ in alignment.pairs)
            if characteristic and not alignment.failures and alignment.matched >= least:
                read = readers[0].outputs[0]
                yield alignment, value, Failure(user, read, mismatch.head(user.node, read, user.index), user.location)


def _operands(root: Pattern) -> Iterator[tuple[Out, Pattern]]:
    """Every operator of a pattern with each of its operands, those of few operators last."""
    found: dict[tuple[Out, Pattern], None] = {}
    stack, seen = [root], {root}
    while stack:
        pattern = stack.pop()
        for part in pattern.parts():
            if isinstance(pattern, Out):
                found[pattern, part] = None
            if part not in seen:
                seen.add(part)
                stack.append(part)
    return iter(sorted(found, key=lambda pair: -len(pair[1].mandatory)))


def where_search_ends(fusion: Fusion, value: ir.Value, facts: Facts) -> Failure | None:
    """The failure of the matcher that had bound most operators; None if it succeeds."""
    best: list[tuple[tuple[int, bool], Failure]] = []

    def watch(pattern: Pattern, at: ir.Value, problem: Mismatch, search: Search) -> None:
        rank = (sum(isinstance(key, Node) for key in search.bound), problem.agrees_on_operator)
        if not best or rank > best[0][0]:
            best[:] = [(rank, Failure(pattern, at, problem, _use(pattern, search)))]

    search = Search(fusion.roots, value, facts)
    search.watch = watch
    try:
        for _ in search.solutions():
            return None
    except StepLimitReached as limit:
        return Failure(fusion.roots[0], value, Mismatch("search", "an end", limit), fusion.location)
    return best[0][1] if best else None


def _use(pattern: Pattern, search: Search) -> Location:
    """The line of the operator through which the search came to `pattern`."""
    users = (key for key in reversed(search.trail) if isinstance(key, Node) and pattern in key.inputs)
    user = next(users, pattern)
    return user.location


def _report(fusion: Fusion, matched: int, wanted: int, root: ir.Value, failure: Failure, facts: Facts) -> NearMiss:
    location = failure.location
    return NearMiss(
        fusion=fusion.name,
        node=node_text(root.producer()),
        matched=matched,
        wanted=wanted,
        where=f"{Path(location.file).name}:{location.line}",
        source=location.text,
        at=place_text(failure.value, facts),
        what=failure.problem.what,
        expected=_text(failure.problem.expected, facts),
        found=_text(failure.problem.found, facts),
        tried=[(pattern_text(pattern), failure_text(inner, facts)) for pattern, inner in _flat(failure.tried)],
    )


def _flat(tried: Iterable[tuple[Pattern, Failure]]) -> list[tuple[Pattern, Failure]]:
    found = []
    for pattern, failure in tried:
        found.extend(_flat(failure.tried) if isinstance(pattern, Either) and failure.tried else [(pattern, failure)])
    return found


def failure_text(failure: Failure, facts: Facts) -> str:
    """`Softmax.axis: expected -1, found 1`."""
    problem = failure.problem
    return f"{problem.what}: expected {_text(problem.expected, facts)}, found {_text(problem.found, facts)}"


def place_text(value: ir.Value, facts: Facts) -> str:
    """The node that makes `value`, and the value with dtype and shape."""
    if value is ABSENT:
        return "an input left out"
    producer = value.producer()
    maker = "graph input or initializer" if producer is None else f"{producer.op_type} {node_text(producer)!r}"
    return f"{maker}: {value_text(value, facts)}"


def _text(thing: object, facts: Facts) -> str:
    if isinstance(thing, ir.Value):
        return value_text(thing, facts)
    if isinstance(thing, ir.Node):
        return f"{thing.domain}.{thing.op_type}" if thing.domain else thing.op_type
    if isinstance(thing, tuple):
        return f"[{', '.join(map(str, thing))}]"
    return "nothing" if thing is None else str(thing)


def pattern_text(pattern: Pattern, depth: int = 2) -> str:
    """A pattern in a few words: `Mul(x, Reciprocal(...))`."""
    match pattern:
        case Input():
            return pattern.name
        case Const():
            return str(pattern.number)
        case Absent():
            return "None"
        case Guard():
            return pattern_text(pattern.pattern, depth)
        case Either():
            return " | ".join(pattern_text(part, depth - 1) for part in pattern.alternatives) if depth else "..."
        case Out():
            inner = ", ".join(pattern_text(part, depth - 1) for part in pattern.node.inputs) if depth else "..."
            return f"{pattern.node.label}({inner})"
    return type(pattern).__name__
