"""Patterns as plain data: what a subgraph looks like. Each pattern knows the file and line that wrote it.

A pattern describes one graph value. `Input` captures a value, `Const` is a number, `Out` is an output of an
operator pattern `Node`, `Either` is one of several patterns, `Guard` adds a condition, `Absent` is an input
left out. Python operators build further patterns: `x * y`, `h ** 2`, `1 / r`, `a | b`, `x @ w`, `-x`.
The same object used twice stands for the same graph value.
"""

from __future__ import annotations

import difflib
import functools
import linecache
import sys
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from onnxfuse import operators
from onnxfuse.operators import OpId

_ENGINE_FILES = {__file__, "<string>"}  # "<string>": the __init__ that dataclasses writes


class PatternError(Exception):
    """A pattern that cannot mean what its author intended. The message names the pattern's file and line."""


@dataclass(frozen=True)
class Location:
    """A line of a pattern file."""

    file: str
    line: int

    @property
    def text(self) -> str:
        """The source line, stripped."""
        return linecache.getline(self.file, self.line).strip()

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def write_as_engine(file: str) -> None:
    """Declare `file` a part of the language, so that patterns built by it point at its caller."""
    _ENGINE_FILES.add(file)


def caller() -> Location:
    """The innermost line outside the pattern language."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename in _ENGINE_FILES and frame.f_back is not None:
        frame = frame.f_back
    return Location(frame.f_code.co_filename, frame.f_lineno)


@dataclass(eq=False, kw_only=True)
class Pattern:
    """Base of all patterns. `heads`: operators that can produce the value (None: anything can)."""

    location: Location = field(default_factory=caller)
    heads: frozenset[OpId] | None = None
    needs_constant: bool = False

    def __add__(self, other: object) -> Out:
        return node("Add", self, other)

    def __radd__(self, other: object) -> Out:
        return node("Add", other, self)

    def __sub__(self, other: object) -> Out:
        return node("Sub", self, other)

    def __rsub__(self, other: object) -> Out:
        return node("Sub", other, self)

    def __mul__(self, other: object) -> Out:
        return node("Mul", self, other)

    def __rmul__(self, other: object) -> Out:
        return node("Mul", other, self)

    def __truediv__(self, other: object) -> Out:
        return node("Div", self, other)

    def __rtruediv__(self, other: object) -> Out:
        return node("Div", other, self)

    def __pow__(self, other: object) -> Out:
        return node("Pow", self, other)

    def __matmul__(self, other: object) -> Out:
        return node("MatMul", self, other)

    def __neg__(self) -> Out:
        return node("Neg", self)

    def __or__(self, other: object) -> Either:
        return Either([self, as_pattern(other)])

    def __ror__(self, other: object) -> Either:
        return Either([as_pattern(other), self])

    def __bool__(self) -> bool:
        raise PatternError(f"{self.location}: a pattern has no truth value; write `a | b` for alternatives")

    def where(self, predicate: Callable[..., bool], reason: str = "the condition does not hold") -> Guard:
        """This pattern, if `predicate(value, facts)` holds for the graph value (its node: `value.producer()`)."""
        return Guard(self, predicate, reason)

    def parts(self) -> Sequence[Pattern]:
        """The patterns this one is directly made of."""
        return ()

    @functools.cached_property
    def mandatory(self) -> frozenset[Node]:
        """The operators of the smallest subgraph that this pattern describes."""
        return frozenset().union(*(part.mandatory for part in self.parts()))


@dataclass(eq=False)
class Input(Pattern):
    """Captures a value. `dims` are names, literal sizes, `(name,)` for "name or 1"; None: any rank."""

    name: str = ""
    dims: tuple[str | int | tuple[str], ...] | None = None
    leading: bool = False  # any number of further dimensions may stand in front
    is_scalar: bool = False


@dataclass(eq=False)
class Const(Pattern):
    """A constant equal to `number`: one element of any rank for a number, the exact list for a sequence."""

    number: object

    def __post_init__(self) -> None:
        self.needs_constant = True
        self.array = np.asarray(self.number)


@dataclass(eq=False)
class Absent(Pattern):
    """An optional input that is left out."""


@dataclass(frozen=True)
class Attribute:
    """Captures an attribute under `name`; without a name it accepts any value silently."""

    name: str | None


@dataclass(frozen=True)
class Accepts:
    """What a parameter may be: one of `values`, plain data. `text` is how the pattern's author put it."""

    values: tuple[object, ...]
    text: str


@dataclass(eq=False)
class Node:
    """One operator application. `parameters` are attributes, or inputs given by the name the standard gives them."""

    ops: tuple[OpId, ...]
    inputs: tuple[Pattern, ...]
    parameters: dict[str, Pattern | Attribute | Accepts]
    outputs: int
    takes_more_inputs: bool
    takes_more_attributes: bool
    location: Location

    def __post_init__(self) -> None:
        self.heads = frozenset(self.ops)
        self.label = " or ".join(f"{domain}.{op}" if domain else op for domain, op in self.ops)
        self.is_commutative = all(op in operators.COMMUTATIVE and not domain for domain, op in self.ops)
        self.named_inputs = [(name, value) for name, value in self.parameters.items() if isinstance(value, Pattern)]
        self.captured = [(name, value) for name, value in self.parameters.items() if isinstance(value, Attribute)]
        # Most selective first: a wrong constant or operator ends the attempt before captures are bound.
        self.order = sorted(range(len(self.inputs)), key=lambda i: _selectivity(self.inputs[i]))


@dataclass(eq=False)
class Out(Pattern):
    """Output `index` of an operator pattern."""

    node: Node
    index: int = 0

    def __post_init__(self) -> None:
        self.heads = self.node.heads

    def parts(self) -> Sequence[Pattern]:
        return (*self.node.inputs, *(value for _, value in self.node.named_inputs))

    @functools.cached_property
    def mandatory(self) -> frozenset[Node]:
        return super().mandatory | {self.node}


@dataclass(eq=False)
class Branch(Pattern):
    """Alternative number `index` of `either`: the step by which the matcher enters it."""

    either: Either
    index: int
    pattern: Pattern
    tag: str | None


@dataclass(eq=False)
class Either(Pattern):
    """One of several patterns, the first first. `tag` is the capture that says which alternative was taken."""

    alternatives: list[Pattern]
    tag: str | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        heads: set[OpId] = set()
        for alternative in self.alternatives:
            heads.update(alternative.heads or ())
        closed = all(alternative.heads is not None for alternative in self.alternatives)
        self.heads = frozenset(heads) if closed else None
        self.needs_constant = all(alternative.needs_constant for alternative in self.alternatives)
        names = self.names or (None,) * len(self.alternatives)
        self.branches = [
            Branch(self, i, pattern, name, heads=pattern.heads, location=pattern.location)
            for i, (pattern, name) in enumerate(zip(self.alternatives, names, strict=True))
        ]

    def parts(self) -> Sequence[Pattern]:
        return self.alternatives

    @functools.cached_property
    def mandatory(self) -> frozenset[Node]:
        return min((alternative.mandatory for alternative in self.alternatives), key=len)


@dataclass(eq=False)
class Test(Pattern):
    """The condition of a guard: the step by which the matcher evaluates it, after the guarded pattern."""

    guard: Guard


@dataclass(eq=False)
class Guard(Pattern):
    """`pattern`, on condition that `predicate(value, facts)` holds."""

    pattern: Pattern
    predicate: Callable[..., bool]
    reason: str

    def __post_init__(self) -> None:
        self.heads = self.pattern.heads
        self.needs_constant = self.pattern.needs_constant
        self.test = Test(self, location=self.location)

    def parts(self) -> Sequence[Pattern]:
        return (self.pattern,)


def _selectivity(pattern: Pattern) -> int:
    if pattern.needs_constant:
        return 0
    return 1 if pattern.heads is not None else 2


def as_pattern(value: object) -> Pattern:
    """A pattern as it is, None as an absent input, numbers and sequences of numbers as constants."""
    if isinstance(value, Pattern):
        return value
    if value is None:
        return Absent()
    if isinstance(value, (bool, int, float, list, tuple, np.ndarray, np.generic)):
        return Const(value)
    raise PatternError(f"{caller()}: {value!r} is neither a pattern nor a number")


def node(*args: object, **parameters: object) -> Out | tuple[Out, ...]:
    """`node("Add", x, y)`: an operator of the standard domain; see `operator`."""
    op_type, *inputs = args
    return operator(((operators.STANDARD, op_type),), inputs, parameters)


def operator(
    ops: tuple[OpId, ...], inputs: Sequence[object], parameters: dict[str, object], outputs: int = 1
) -> Out | tuple[Out, ...]:
    """One application of any of `ops`.

    `...` as last input accepts further inputs unseen, `attributes=...` further attributes.
    """
    location = caller()
    takes_more = bool(inputs) and inputs[-1] is Ellipsis
    patterns = tuple(as_pattern(value) for value in (inputs[:-1] if takes_more else inputs))
    open_attributes = parameters.get("attributes") is Ellipsis
    if open_attributes:
        parameters = {name: value for name, value in parameters.items() if name != "attributes"}
    known = tuple(op for op in ops if not operators.is_newer(*op))
    for domain, op_type in known:
        if domain == operators.STANDARD and op_type not in operators.UNLISTED:
            _check_standard(op_type, patterns, parameters, open_attributes, location)
    expected = {name: _expectation(name, value, known, location) for name, value in parameters.items()}
    made = Node(known, patterns, expected, outputs, takes_more, open_attributes, location)
    values = tuple(Out(made, i, location=location) for i in range(outputs))
    return values if outputs > 1 else values[0]


def _expectation(name: str, value: object, ops: tuple[OpId, ...], where: Location) -> Pattern | Attribute | Accepts:
    if isinstance(value, Attribute):
        return value
    if isinstance(value, Pattern):
        for domain, op_type in ops:
            if domain or operators.input_index(op_type, name) is None:
                raise PatternError(f"{where}: {op_type} has no input named {name}; give patterns by position")
        return value
    choices = sorted(value, key=str) if isinstance(value, (set, frozenset)) else [value]
    if any(operators.names_dtype(domain, op_type, name) for domain, op_type in ops):
        try:
            choices = [int(operators.dtype_from_name(item)) if isinstance(item, str) else item for item in choices]
        except ValueError as error:
            raise PatternError(f"{where}: {name}: {error}") from None
    text = " or ".join(sorted(map(str, value))) if isinstance(value, (set, frozenset)) else str(value)
    return Accepts(tuple(operators.plain(item) for item in choices), text)


def _check_standard(
    op_type: str, inputs: Sequence[Pattern], parameters: dict[str, object], is_open: bool, where: Location
) -> None:
    definition = operators.schema(operators.STANDARD, op_type)
    if definition is None:
        raise PatternError(
            f"{where}: ONNX has no operator {op_type}; another domain is written op.ns('domain').{op_type}"
        )
    if len(inputs) > definition.max_input:
        raise PatternError(f"{where}: {op_type} takes at most {definition.max_input} inputs, found {len(inputs)}")
    known = operators.known_parameters(op_type)
    for name in parameters:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; it has {', '.join(sorted(known))}"
            raise PatternError(f"{where}: {op_type} has no parameter {name}{hint}")
        index = operators.input_index(op_type, name)
        if index is not None and index < len(inputs):
            raise PatternError(f"{where}: {op_type} is given {name} twice, by position and by name")
    # The target of a Cast shows in the captured values, so `op.Cast(x)` may leave it open.
    missing = operators.required_attributes(op_type) - parameters.keys() - ({"to"} if op_type == "Cast" else set())
    if missing and not is_open:
        name = min(missing)
        raise PatternError(f"{where}: {op_type} needs {name}=...; write {name}=attr() to accept any value")


def walk(*roots: Pattern) -> Iterator[Pattern]:
    """Every pattern reachable from `roots`, each once, users before what they are made of."""
    seen: set[Pattern] = set()
    stack = list(reversed(roots))
    while stack:
        pattern = stack.pop()
        if pattern not in seen:
            seen.add(pattern)
            yield pattern
            stack.extend(reversed(pattern.parts()))


def heads_among(root: Pattern, operators: Set[OpId]) -> frozenset[OpId] | None:
    """Those of `operators` that can produce `root` in a graph that has no others; None: anything can.

    Empty: `root` can't be in such a graph.
    """
    known: dict[Pattern, frozenset[OpId] | None] = {}

    def heads(pattern: Pattern) -> frozenset[OpId] | None:
        if pattern not in known:
            parts = [heads(part) for part in pattern.parts()]
            if isinstance(pattern, Out):
                possible = all(part is None or part for part in parts)
                known[pattern] = pattern.heads & operators if possible else frozenset()
            elif isinstance(pattern, Either):
                known[pattern] = None if None in parts else frozenset().union(*parts)
            else:
                known[pattern] = parts[0] if parts else None
        return known[pattern]

    return heads(root)


def distances(root: Pattern) -> dict[Pattern, int]:
    """For every part of `root` the largest number of operators between the two, users before what they are made of."""
    order: list[Pattern] = []
    seen: set[Pattern] = set()

    def visit(pattern: Pattern) -> None:
        if pattern not in seen:
            seen.add(pattern)
            for part in pattern.parts():
                visit(part)
            order.append(pattern)

    visit(root)
    found = dict.fromkeys(reversed(order), 0)
    for pattern, distance in found.items():
        for part in pattern.parts():
            found[part] = max(found[part], distance + isinstance(pattern, Out))
    return found
