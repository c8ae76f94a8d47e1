"""Matching: from a pattern and a graph value to every way in which they agree.

The matcher is a small machine with a list of goals ("this pattern describes this value"), a trail of bindings to
undo, and a stack of choices to come back to: alternatives of an `Either`, the two operand orders of a commutative
operator, the places of a second pattern output. Going on after a solution gives the next one, so a condition that
fails late leads to another alternative, never to a lost match. Every condition is a goal like any other and is
therefore evaluated on every path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import onnx_ir as ir

from onnxfuse import mismatch, parameters
from onnxfuse.facts import Facts
from onnxfuse.mismatch import ABSENT, Mismatch
from onnxfuse.pattern import (
    Absent,
    Branch,
    Const,
    Either,
    Guard,
    Input,
    Node,
    Out,
    Pattern,
    Test,
    distances,
    walk,
)

STEP_LIMIT = 20_000  # a pattern of 40 operators takes some 200 steps; more than this is an ambiguous pattern

Goals = tuple | None  # (pattern, value, further goals)
FAILED = False


class StepLimitReached(Exception):
    """A pattern has too many ways to look at one root."""


class Search:
    """One attempt to match `roots` with `value` as the first of them; counts its steps."""

    def __init__(self, roots: Sequence[Pattern], value: ir.Value, facts: Facts, limit: int = STEP_LIMIT) -> None:
        self.roots = roots
        self.value = value
        self.facts = facts
        self.limit = limit
        self.steps = 0
        self.bound: dict[object, object] = {}
        self.trail: list[object] = []
        self.choices: list[tuple[Goals, int]] = []
        self.watch: Callable[[Pattern, ir.Value, Mismatch, Search], None] | None = None

    def solutions(self) -> Iterator[dict[object, object]]:
        """Yield the bindings of each way to match. They are live: copy what is needed before going on."""
        goals: Goals = None
        for root in reversed(self.roots[1:]):
            goals = (_Elsewhere(root), ABSENT, goals)
        goals = (self.roots[0], self.value, goals)
        bound, trail, choices = self.bound, self.trail, self.choices
        while True:
            if goals is None:
                yield bound
                goals = FAILED
            else:
                self.steps += 1
                if self.steps > self.limit:
                    raise StepLimitReached(f"gave up after {self.limit} steps: too many ways to look at this root")
                pattern, value, rest = goals
                seen = bound.get(pattern)
                if seen is None:
                    goals = _HANDLERS[type(pattern)](self, pattern, value, rest)
                elif seen is value:
                    goals = rest
                else:
                    goals = self.fail(pattern, value, Mismatch("value", seen, value))
            if goals is FAILED:
                if not choices:
                    return
                goals, mark = choices.pop()
                while len(trail) > mark:
                    del bound[trail.pop()]

    def bind(self, key: object, value: object) -> None:
        self.bound[key] = value
        self.trail.append(key)

    def choose_later(self, goals: Goals) -> None:
        self.choices.append((goals, len(self.trail)))

    def fail(self, pattern: Pattern, value: ir.Value, problem: Mismatch) -> bool:
        if self.watch is not None:
            self.watch(pattern, value, problem, self)
        return FAILED

    def is_plausible(self, pattern: Pattern, value: ir.Value) -> bool:
        """A look one step ahead: False only if the goal would fail at once."""
        seen = self.bound.get(pattern)
        if seen is not None:
            return seen is value
        if value is ABSENT:
            return isinstance(pattern, (Absent, Either, Guard))
        if pattern.needs_constant:
            return mismatch.has_known_content(value, self.facts)
        if pattern.heads is None:
            return True
        producer = value.producer()
        return producer is not None and (producer.domain, producer.op_type) in pattern.heads


def _input(search: Search, pattern: Input, value: ir.Value, rest: Goals) -> Goals:
    problem = mismatch.capture(pattern, value, search.facts)
    if problem is not None:
        return search.fail(pattern, value, problem)
    search.bind(pattern, value)
    shape = search.facts.shape(value) if pattern.dims else None
    if shape is not None:
        for position, dim in enumerate(shape[len(shape) - len(pattern.dims) :]):
            if dim is None:
                continue
            problem = mismatch.dimension(pattern, position, search.bound, dim)
            if problem is not None:
                return search.fail(pattern, value, problem)
            name = pattern.dims[position]
            if isinstance(name, tuple):
                name = None if dim == 1 else name[0]
            if isinstance(name, str) and name != "_" and ("dim", name) not in search.bound:
                search.bind(("dim", name), dim)
    return rest


def _const(search: Search, pattern: Const, value: ir.Value, rest: Goals) -> Goals:
    problem = mismatch.constant(pattern, value, search.facts)
    return rest if problem is None else search.fail(pattern, value, problem)


def _absent(search: Search, pattern: Absent, value: ir.Value, rest: Goals) -> Goals:
    problem = mismatch.absent(value)
    return rest if problem is None else search.fail(pattern, value, problem)


def _either(search: Search, pattern: Either, value: ir.Value, rest: Goals) -> Goals:
    plausible = [branch for branch in pattern.branches if search.is_plausible(branch.pattern, value)]
    if search.watch is not None:
        plausible = pattern.branches  # the watcher wants to hear why each one fails
    if not plausible:
        return FAILED
    for branch in reversed(plausible[1:]):
        search.choose_later((branch, value, rest))
    return (plausible[0], value, rest)


def _branch(search: Search, branch: Branch, value: ir.Value, rest: Goals) -> Goals:
    search.bind(branch.either, value)
    if branch.either.tag is not None:
        search.bind(branch.either.tag, branch.tag)
    return (branch.pattern, value, rest)


def _guard(search: Search, pattern: Guard, value: ir.Value, rest: Goals) -> Goals:
    search.bind(pattern, value)
    return (pattern.pattern, value, (pattern.test, value, rest))


def _test(search: Search, test: Test, value: ir.Value, rest: Goals) -> Goals:
    guard = test.guard
    if guard.predicate(value, search.facts):
        return rest
    return search.fail(guard, value, mismatch.condition(guard))


def _out(search: Search, pattern: Out, value: ir.Value, rest: Goals) -> Goals:
    wanted = pattern.node
    problem = mismatch.head(wanted, value, pattern.index)
    if problem is not None:
        return search.fail(pattern, value, problem)
    node = value.producer()
    known = search.bound.get(wanted)
    if known is not None:
        if known is not node:
            return search.fail(pattern, value, Mismatch("node", known.name, node.name))
        search.bind(pattern, value)
        return rest
    problem = mismatch.signature(wanted, node, search.facts)
    if problem is not None:
        return search.fail(pattern, value, problem)
    search.bind(wanted, node)
    search.bind(pattern, value)
    for name, attribute in wanted.captured:
        if attribute.name is None:
            continue
        found = (parameters.value_of(node, name, search.facts),)
        earlier = search.bound.setdefault(attribute, found)
        if earlier is found:
            search.trail.append(attribute)
        elif earlier != found:
            return search.fail(pattern, value, Mismatch(f"{node.op_type}.{name}", earlier[0], found[0]))
    for name, expected in wanted.named_inputs:
        rest = (expected, mismatch.named_input(node, name), rest)
    return _operands(search, wanted, node, rest)


def operand_values(wanted: Node, node: ir.Node) -> list[ir.Value]:
    """What stands at the positional inputs of a pattern operator, ABSENT where the graph leaves one out."""
    count = len(wanted.inputs)
    values = [ABSENT if value is None else value for value in node.inputs[:count]]
    return values + [ABSENT] * (count - len(values))


def _operands(search: Search, wanted: Node, node: ir.Node, rest: Goals) -> Goals:
    patterns = wanted.inputs
    values = operand_values(wanted, node)
    if wanted.is_commutative and len(patterns) == 2:
        (a, b), (x, y) = patterns, values
        straight = search.is_plausible(a, x) and search.is_plausible(b, y)
        crossed = x is not y and a is not b and search.is_plausible(a, y) and search.is_plausible(b, x)
        if crossed:
            swapped = _goals(wanted, (y, x), rest)
            if not straight:
                return swapped
            search.choose_later(swapped)
    return _goals(wanted, values, rest)


def _goals(wanted: Node, values: Sequence[ir.Value], rest: Goals) -> Goals:
    for index in reversed(wanted.order):
        rest = (wanted.inputs[index], values[index], rest)
    return rest


class _Elsewhere(Pattern):
    """A further pattern output: found from what is bound already, by walking forward in the graph."""

    def __init__(self, root: Pattern) -> None:
        self.root = root


def _elsewhere(search: Search, pattern: _Elsewhere, _: ir.Value, rest: Goals) -> Goals:
    root = pattern.root
    if root in search.bound:
        return rest
    candidates = [value for value in _reachable(search, root) if search.is_plausible(root, value)]
    if not candidates:
        return search.fail(root, search.value, Mismatch("output", "a further output", "none in reach", False))
    for value in reversed(candidates[1:]):
        search.choose_later((root, value, rest))
    return (root, candidates[0], rest)


def _reachable(search: Search, root: Pattern) -> list[ir.Value]:
    """Values that `root` may describe: forward from the nearest pattern both bound and part of `root`."""
    anchor, distance = _nearest_bound(search, root)
    if anchor is None:
        return []
    inner = frozenset().union(*(part.heads or () for part in walk(root)))
    taken = {search.bound.get(other) for other in search.roots}
    graph = search.value.producer().graph
    frontier: dict[ir.Value, None] = {anchor: None}
    found: dict[ir.Value, None] = {}
    for _ in range(distance):
        following: dict[ir.Value, None] = {}
        for value in frontier:
            for use in value.uses():
                if (use.node.domain, use.node.op_type) in inner:
                    following.update(dict.fromkeys(use.node.outputs))
        found.update(following)
        frontier = following
    return [value for value in found if value not in taken and value.producer().graph is graph]


def _nearest_bound(search: Search, root: Pattern) -> tuple[ir.Value | None, int]:
    bound = ((search.bound.get(part), distance) for part, distance in distances(root).items())
    known = [(value, distance) for value, distance in bound if isinstance(value, ir.Value)]
    return min(known, key=lambda pair: pair[1], default=(None, 0))


_HANDLERS = {
    Input: _input,
    Const: _const,
    Absent: _absent,
    Either: _either,
    Branch: _branch,
    Guard: _guard,
    Test: _test,
    Out: _out,
    _Elsewhere: _elsewhere,
}
