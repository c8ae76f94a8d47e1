"""Laying a pattern over a graph as well as it can be, instead of stopping at the first disagreement.

A wrong attribute costs one, an operator that is not there costs all the operators the pattern wanted below it. Every
alternative is laid out, so that a report can say why each one failed. An alignment knows one pattern part and one graph
value at a time; that the same capture must be the same value everywhere is left to the matcher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import onnx_ir as ir

from onnxfuse import mismatch, operators
from onnxfuse.facts import Facts
from onnxfuse.matcher import operand_values
from onnxfuse.mismatch import ABSENT, Mismatch
from onnxfuse.pattern import Absent, Const, Either, Guard, Input, Location, Node, Out, Pattern


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
        return any(tells(node) for node in found) or not any(tells(node) for node in missing)

    def rank(self) -> tuple[int, int, bool]:
        """Least is best: low cost, then many operators, then a failure that is not a wrong operator."""
        agrees = all(failure.problem.agrees_on_operator for failure in self.failures)
        return (self.cost, -len(self.pairs), not agrees)


def _has_head(pattern: Pattern, value: ir.Value) -> bool:
    producer = None if value is ABSENT else value.producer()
    return producer is not None and (producer.domain, producer.op_type) in pattern.heads


def tells(node: Node) -> bool:
    """Whether the operator is of few patterns; an addition is of all."""
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
