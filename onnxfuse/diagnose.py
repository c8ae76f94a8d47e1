"""Near misses: where a fusion that did not match came closest, and why it did not.

`Aligner` lays a pattern over the graph as well as it can instead of stopping at the first disagreement: a wrong
attribute costs one, an operator that is not there costs all the operators the pattern wanted below it. Every
alternative is laid out, so that the report can say why each one failed. It knows one pattern part and one graph
value at a time; that the same capture must be the same value everywhere is left to the matcher, which is asked
where it gave up if everything else agrees.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir

from onnxfuse import mismatch, operators
from onnxfuse.explain import NearMiss
from onnxfuse.facts import Facts
from onnxfuse.fusion import Fusion, node_text, value_text
from onnxfuse.matcher import Search, StepLimitReached, operand_values
from onnxfuse.mismatch import ABSENT, Mismatch
from onnxfuse.pattern import (
    Absent,
    Const,
    Either,
    Guard,
    Input,
    Location,
    Node,
    OpId,
    Out,
    Pattern,
    walk,
)

LEAST_MATCHED = 2  # one operator alone resembles everything


class Failure(NamedTuple):
    """`pattern` and `value` disagree by `problem`; `tried` holds the failure of each alternative that might replace it.

    `location` is the line to blame: where the pattern is written, for a capture where it is used.
    """

    pattern: Pattern
    value: ir.Value
    problem: Mismatch
    location: Location
    tried: tuple[tuple[Pattern, Failure], ...] = ()


class Alignment(NamedTuple):
    """How well a pattern lies over a value: what disagrees costs, `pairs` are the operators that agree."""

    cost: int
    pairs: frozenset[tuple[Node, ir.Node]]
    failures: tuple[Failure, ...]

    @property
    def matched(self) -> int:
        """How many operators of the pattern were found."""
        return len({pattern for pattern, _ in self.pairs})

    @property
    def wanted(self) -> int:
        """How many there are in the alternatives that came closest."""
        wrong = (failure for failure in self.failures if not failure.problem.agrees_on_operator)
        return self.matched + len(frozenset().union(*(failure.pattern.mandatory for failure in wrong)))

    @property
    def is_characteristic(self) -> bool:
        """Whether an operator was found that tells this pattern from others, if it has any such."""
        wrong = (failure for failure in self.failures if not failure.problem.agrees_on_operator)
        missing = frozenset().union(*(failure.pattern.mandatory for failure in wrong))
        found = {pattern for pattern, _ in self.pairs}
        return any(_tells(node) for node in found) or not any(_tells(node) for node in missing)

    def rank(self) -> tuple[int, int, bool]:
        """Least is best: low cost, then many operators, then a failure that is not a wrong operator."""
        agrees = all(failure.problem.agrees_on_operator for failure in self.failures)
        return (self.cost, -len(self.pairs), not agrees)


def _has_head(pattern: Pattern, value: ir.Value) -> bool:
    producer = None if value is ABSENT else value.producer()
    return producer is not None and (producer.domain, producer.op_type) in pattern.heads


def _tells(node: Node) -> bool:
    return any(domain or op_type not in operators.COMMONPLACE for domain, op_type in node.ops)


_AGREES = Alignment(0, frozenset(), ())


class Aligner:
    """Aligns patterns with values of one graph; remembers results, so use it on a graph that does not change."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._known: dict[tuple[Pattern, ir.Value], Alignment] = {}
        self._counts: dict[tuple[Pattern, ir.Value], int] = {}

    def count(self, pattern: Pattern, value: ir.Value) -> int:
        """At least as many operators as any alignment finds: a quick look before the thorough one."""
        if pattern.heads is None and not pattern.parts():
            return 0
        key = (pattern, value)
        known = self._counts.get(key)
        if known is None:
            known = self._counts[key] = self._count(pattern, value)
        return known

    def _count(self, pattern: Pattern, value: ir.Value) -> int:
        if isinstance(pattern, Either):
            return max(self.count(alternative, value) for alternative in pattern.alternatives)
        if isinstance(pattern, Guard):
            return self.count(pattern.pattern, value)
        if not _has_head(pattern, value):
            return 0
        values = operand_values(pattern.node, value.producer())
        inputs = pattern.node.inputs
        counted = sum(map(self.count, inputs, values))
        if pattern.node.is_commutative:
            counted = max(counted, sum(map(self.count, inputs, reversed(values))))
        named = pattern.node.named_inputs
        return 1 + counted + sum(self.count(part, mismatch.named_input(value.producer(), name)) for name, part in named)

    def fits(self, pattern: Pattern, value: ir.Value) -> bool:
        """Whether all operators are the pattern's, whatever else fails: a look that ends at the first that is not."""
        if pattern.heads is None:
            return True
        if not _has_head(pattern, value):
            return False
        if isinstance(pattern, Either):
            return any(self.fits(alternative, value) for alternative in pattern.alternatives)
        if isinstance(pattern, Guard):
            return self.fits(pattern.pattern, value)
        values, inputs = operand_values(pattern.node, value.producer()), pattern.node.inputs
        if all(map(self.fits, inputs, values)):
            return True
        return pattern.node.is_commutative and all(map(self.fits, inputs, reversed(values)))

    def align(self, pattern: Pattern, value: ir.Value) -> Alignment:
        """The best alignment of `pattern` with `value`."""
        key = (pattern, value)
        if key not in self._known:
            self._known[key] = self._align(pattern, value)
        return self._known[key]

    def _align(self, pattern: Pattern, value: ir.Value) -> Alignment:
        match pattern:
            case Out():
                return self._operator(pattern, value)
            case Either():
                return self._either(pattern, value)
            case Guard():
                return self._guard(pattern, value)
            case Input():
                return self._leaf(pattern, value, mismatch.capture(pattern, value, self.facts))
            case Const():
                return self._leaf(pattern, value, mismatch.constant(pattern, value, self.facts))
            case Absent():
                return self._leaf(pattern, value, mismatch.absent(value))
        raise TypeError(f"no alignment for {type(pattern).__name__}")

    def _leaf(self, pattern: Pattern, value: ir.Value, problem: Mismatch | None) -> Alignment:
        return _AGREES if problem is None else _failed(pattern, value, problem)

    def _guard(self, pattern: Guard, value: ir.Value) -> Alignment:
        inner = self.align(pattern.pattern, value)
        if inner.failures or pattern.predicate(value, self.facts):
            return inner
        return _joined([inner, _failed(pattern, value, mismatch.condition(pattern))])

    def _either(self, pattern: Either, value: ir.Value) -> Alignment:
        results = [self.align(alternative, value) for alternative in pattern.alternatives]
        best = min(results, key=Alignment.rank)
        if not best.failures:
            return best
        first = best.failures[0]
        tried = tuple(
            (alternative, result.failures[0]) for alternative, result in zip(pattern.alternatives, results, strict=True)
        )
        return best._replace(failures=(first._replace(tried=tried), *best.failures[1:]))

    def _operator(self, pattern: Out, value: ir.Value) -> Alignment:
        wanted = pattern.node
        problem = mismatch.head(wanted, value, pattern.index)
        if problem is not None:
            return _failed(pattern, value, problem, cost=len(pattern.mandatory))
        node = value.producer()
        problem = mismatch.signature(wanted, node, self.facts)
        parts = [] if problem is None else [_failed(pattern, value, problem)]
        for name, expected in wanted.named_inputs:
            parts.append(self._operand(expected, mismatch.named_input(node, name), wanted))
        values = operand_values(wanted, node)
        operands = [self._operand(part, value, wanted) for part, value in zip(wanted.inputs, values, strict=True)]
        if wanted.is_commutative and len(values) == 2:
            pairs = zip(wanted.inputs, reversed(values), strict=True)
            crossed = [self._operand(part, value, wanted) for part, value in pairs]
            operands = min(operands, crossed, key=lambda side: _joined(side).rank())
        return _joined([Alignment(0, frozenset({(wanted, node)}), ()), *parts, *operands])

    def _operand(self, pattern: Pattern, value: ir.Value, user: Node) -> Alignment:
        found = self.align(pattern, value)
        if not isinstance(pattern, Input) or not found.failures:
            return found
        return found._replace(failures=(found.failures[0]._replace(location=user.location),))


def _failed(pattern: Pattern, value: ir.Value, problem: Mismatch, cost: int = 1) -> Alignment:
    return Alignment(cost, frozenset(), (Failure(pattern, value, problem, pattern.location),))


def _joined(parts: Sequence[Alignment]) -> Alignment:
    return Alignment(
        sum(part.cost for part in parts),
        frozenset().union(*(part.pairs for part in parts)),
        tuple(failure for part in parts for failure in part.failures),
    )


def near_misses(
    fusion: Fusion, nodes: Sequence[ir.Node], aligner: Aligner, explained: Iterable[ir.Node] = ()
) -> list[tuple[ir.Node, NearMiss]]:
    """The places among `nodes` where at least half of `fusion` was found, closest first.

    A place that lies mostly inside another one, or among the `explained` nodes, is left out.
    """
    least = max(LEAST_MATCHED, fusion.size / 2)
    close: list[tuple[Alignment, ir.Value]] = []
    places = _Places(nodes)
    telling = [part.node for part in walk(fusion.roots[0]) if isinstance(part, Out) and _tells(part.node)]
    if any(map(_tells, fusion.roots[0].mandatory)) and not any(map(places.have, telling)):
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


class _Places:
    """Nodes by their operator."""

    def __init__(self, nodes: Iterable[ir.Node]) -> None:
        self._by_operator: dict[OpId, list[tuple[int, ir.Node]]] = {}
        for position, node in enumerate(nodes):
            self._by_operator.setdefault((node.domain, node.op_type), []).append((position, node))

    def have(self, wanted: Node) -> bool:
        """Whether any node is of an operator of `wanted`."""
        return any(operator in self._by_operator for operator in wanted.ops)

    def of(self, heads: Iterable[OpId]) -> list[ir.Node]:
        """Those of these operators, in the order given."""
        return [node for _, node in sorted(place for head in heads for place in self._by_operator.get(head, ()))]


def _severed(
    fusion: Fusion, places: _Places, aligner: Aligner, least: float
) -> Iterator[tuple[Alignment, ir.Value, Failure]]:
    """Where all that an operator of the pattern reads is there, but nothing of its kind reads it.

    The roots of such places are of another kind than the fusion's, where nobody looks for it: silu(gate) + up.
    """
    for user, part in _operands(fusion.roots[0]):
        inside = [inner.node for inner in walk(part) if isinstance(inner, Out)]
        if part.heads is None or len(inside) < least or not any(map(_tells, inside)):
            continue
        if not all(map(places.have, part.mandatory)):
            continue
        for node in places.of(part.heads):
            value = node.outputs[0]
            readers = [use.node for use in value.uses()]
            if not readers or any((reader.domain, reader.op_type) in user.heads for reader in readers):
                continue
            if not aligner.fits(part, value):
                continue
            alignment = aligner.align(part, value)
            tells = any(_tells(found) for found, _ in alignment.pairs)
            if tells and not alignment.failures and alignment.matched >= least:
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
