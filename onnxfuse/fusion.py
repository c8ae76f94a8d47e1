"""A fusion: a pattern, its checks and its rewrite under one name; and the match they are given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxfuse import operators
from onnxfuse.facts import Facts
from onnxfuse.matcher import STEP_LIMIT, Search
from onnxfuse.operators import OpId
from onnxfuse.pattern import (
    Attribute,
    Either,
    Guard,
    Input,
    Location,
    Node,
    Out,
    Pattern,
    PatternError,
    as_pattern,
    distances,
    heads_among,
    walk,
)

STAGES = ("cleanup", "elementwise", "norm", "rotary", "attention", "residual", "mlp", "layout", "block")
FLOATS = ("float32", "float16", "bfloat16")


class Refuse(Exception):
    """Raised by a rewrite that finds it cannot build the replacement; the message is the reason in the report."""


@dataclass(eq=False)
class Fusion:
    """What `@fusion` makes of a pattern function.

    `tolerance` is the relative error per dtype that the replacement may add, for the verifier.
    """

    name: str
    stage: str
    op: str | None
    tolerance: dict[str, float]
    documentation: str
    roots: tuple[Pattern, ...]
    location: Location
    module: str
    captures: dict[str, Pattern] = field(init=False)
    checks: list[Callable[[Match], Iterator[tuple[object, str]]]] = field(init=False, default_factory=list)
    rewriting: Callable[..., object] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise PatternError(
                f"{self.location}: {self.name} names stage {self.stage!r}; stages are {', '.join(STAGES)}"
            )
        self._check_roots()
        self.size = len(frozenset().union(*(root.mandatory for root in self.roots)))
        self.heads = self.roots[0].heads
        self.operators = frozenset().union(*(part.heads for part in walk(*self.roots) if isinstance(part, Out)))
        self.height = max(max(distances(root).values()) for root in self.roots)
        self.captures = {part.name: part for part in walk(*self.roots) if isinstance(part, Input)}
        self.words = self._words()

    def _check_roots(self) -> None:
        seen: set[Pattern] = set()
        for position, root in enumerate(self.roots):
            parts = set(walk(root))
            if position == 0 and root.heads is None:
                raise PatternError(f"{self.location}: {self.name} returns a value that no operator need produce")
            if position > 0 and root not in seen and not seen & parts:
                raise PatternError(
                    f"{self.location}: output {position} of {self.name} shares nothing with those before it"
                )
            seen |= parts

    def _words(self) -> frozenset[str]:
        """Names that checks and rewrites may ask a match for; one name has one meaning."""
        words: dict[str, str] = {}
        for name in self.captures:
            self._claim(words, name, "a capture", self.location)
        for part in walk(*self.roots):
            if isinstance(part, Either) and part.tag is not None:
                self._claim(words, part.tag, "a tag", part.location)
            elif isinstance(part, Out):
                for _, attribute in part.node.captured:
                    if attribute.name is not None:
                        self._claim(words, attribute.name, "an attribute", part.location)
            elif isinstance(part, Input):
                for dim in part.dims or ():
                    name = dim[0] if isinstance(dim, tuple) else dim
                    if isinstance(name, str) and name != "_":
                        self._claim(words, name, "a dimension", part.location)
        return frozenset(words)

    @staticmethod
    def _claim(words: dict[str, str], name: str, kind: str, where: Location) -> None:
        if words.setdefault(name, kind) != kind or name in Match.OWN_WORDS:
            other = "a word of every match" if name in Match.OWN_WORDS else words[name]
            raise PatternError(f"{where}: {name!r} is {kind} and {other} at once; rename one")

    def check(self, function: Callable[[Match], Iterator[tuple[object, str]]]) -> Callable:
        """Decorator: a generator of `(condition, reason)`; the first false condition refuses the match.

        A reason is a format string over the match, `"x is {m.x.dtype}"`, and formatted only when it is needed.
        """
        self.checks.append(function)
        return function

    def rewrite(self, function: Callable[..., object]) -> Callable:
        """Decorator: `(new, m) -> value`, one value per pattern output; None leaves that output as it is."""
        self.rewriting = function
        return function

    def refusal(self, match: Match) -> tuple[str, str] | None:
        """Why the checks refuse `match` and where that is written, None if they accept it."""
        for check in self.checks:
            conditions = check(match)
            for holds, reason in conditions:
                if not holds:
                    text = reason() if callable(reason) else reason.format(m=match)
                    return text, where_text(Location(check.__code__.co_filename, conditions.gi_frame.f_lineno))
        return None

    def heads_among(self, operators: Set[OpId]) -> frozenset[OpId]:
        """Those of `operators` that the root can be in a graph that has no others; none if it can't match there."""
        heads = [heads_among(root, operators) for root in self.roots]
        return heads[0] if all(found is None or found for found in heads) else frozenset()

    def matches(self, value: ir.Value, facts: Facts, limit: int = STEP_LIMIT) -> Iterator[Match]:
        """Every way in which `value` is the fusion's first output."""
        for bound in Search(self.roots, value, facts, limit).solutions():
            yield Match(self, facts, bound)

    def __str__(self) -> str:
        return self.name


class Captured:
    """A captured value as checks and messages see it."""

    __slots__ = ("facts", "name", "value")

    def __init__(self, name: str, value: ir.Value, facts: Facts) -> None:
        self.name = name
        self.value = value
        self.facts = facts

    @property
    def dtype(self) -> str | None:
        """`float32`, `float16`, ...; None if unknown."""
        return operators.dtype_name(self.facts.dtype(self.value))

    @property
    def shape(self) -> tuple[object, ...] | None:
        """One entry a dimension (int, symbol or None); None if the rank is unknown."""
        return self.facts.shape(self.value)

    @property
    def rank(self) -> int | None:
        """Number of dimensions, None if unknown."""
        return None if self.shape is None else len(self.shape)

    @property
    def constant(self) -> np.ndarray | None:
        """The content, if it is a small constant."""
        return self.facts.constant(self.value)

    @property
    def is_constant(self) -> bool:
        """Whether the value is a constant of any size."""
        return self.facts.is_constant(self.value)

    def __str__(self) -> str:
        return value_text(self.value, self.facts)


def value_text(value: object, facts: Facts) -> str:
    """`'name' float32[B, 128]`: a value as messages quote it."""
    if not isinstance(value, ir.Value):
        return str(value)
    shape = facts.shape(value)
    dims = "" if shape is None else f"[{', '.join('?' if dim is None else str(dim) for dim in shape)}]"
    return f"{value.name!r} {operators.dtype_name(facts.dtype(value)) or 'unknown type'}{dims}"


def node_text(node: ir.Node) -> str:
    """A node's name; where it has none, the name of what it makes."""
    return node.name or f"{node.op_type}:{node.outputs[0].name}"


class Match:
    """One way in which a fusion's pattern describes a piece of the graph.

    Captures, tags, captured attributes and dimensions are attributes: `m.x.dtype`, `m.eps` (a number), `m.scaling`,
    `m.D`. What stands only in an alternative that was not taken is None.
    """

    FLOATS = FLOATS
    OWN_WORDS = frozenset({"fusion", "facts", "nodes", "outputs", "inputs", "root", "captured", "FLOATS", "OWN_WORDS"})

    def __init__(self, fusion: Fusion, facts: Facts, bound: dict[object, object]) -> None:
        self.fusion = fusion
        self.facts = facts
        self.outputs: tuple[ir.Value, ...] = tuple(bound[root] for root in fusion.roots)
        self.nodes: tuple[ir.Node, ...] = tuple(dict.fromkeys(v for key, v in bound.items() if isinstance(key, Node)))
        self.captured: dict[str, Captured] = {}
        self._words: dict[str, object] = dict.fromkeys(fusion.words)
        for key, value in bound.items():
            if isinstance(key, Input):
                self.captured[key.name] = self._words[key.name] = Captured(key.name, value, facts)
                if key.is_scalar:
                    self._words[key.name] = facts.constant(value).reshape(-1)[0].item()
            elif isinstance(key, Attribute):
                self._words[key.name] = value[0]
            elif isinstance(key, tuple):
                self._words[key[1]] = value
            elif isinstance(key, str):
                self._words[key] = value

    @property
    def root(self) -> ir.Node:
        """The node that produces the first output."""
        return self.outputs[0].producer()

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        """The captured values, each once."""
        return tuple(dict.fromkeys(capture.value for capture in self.captured.values()))

    def __getattr__(self, name: str) -> object:
        words = self.__dict__.get("_words", {})
        if name in words:
            return words[name]
        raise AttributeError(f"{self.__dict__['fusion'].name} captures no {name!r}; it has {', '.join(sorted(words))}")


def make_fusion(function: Callable[..., object], stage: str, op: str | None, tolerance: dict[str, float]) -> Fusion:
    """Call a pattern function with its captures and wrap what it returns."""
    code = function.__code__
    location = Location(code.co_filename, code.co_firstlineno)
    arguments = {}
    for name, parameter in inspect.signature(function).parameters.items():
        default = Input(location=location) if parameter.default is parameter.empty else parameter.default
        if not isinstance(default, Pattern):
            raise PatternError(f"{location}: parameter {name} must default to tensor(), scalar() or constant()")
        arguments[name] = _named(default, name)
    returned = function(**arguments)
    roots = tuple(as_pattern(root) for root in (returned if isinstance(returned, tuple) else (returned,)))
    made = Fusion(
        name=function.__name__,
        stage=stage,
        op=op,
        tolerance=tolerance,
        documentation=inspect.getdoc(function) or "",
        roots=roots,
        location=location,
        module=function.__module__,
    )
    unused = arguments.keys() - made.captures.keys()
    if unused:
        raise PatternError(f"{location}: {made.name} never uses its parameter {min(unused)}")
    return made


def _named(pattern: Pattern, name: str) -> Pattern:
    """A copy of a parameter's default under the parameter's name."""
    if isinstance(pattern, Guard):
        return Guard(_named(pattern.pattern, name), pattern.predicate, pattern.reason, location=pattern.location)
    if not isinstance(pattern, Input):
        raise PatternError(f"{pattern.location}: parameter {name} must default to tensor(), scalar() or constant()")
    return replace(pattern, name=name)


def where_text(location: Location) -> str:
    """`rms_norm.py:22`: a location as reports print it."""
    return f"{Path(location.file).name}:{location.line}"
