"""Symbolic dimensions: exact integer arithmetic over the sizes that a model leaves open.

A dimension is an `int` or a `Dim`, a polynomial with integer coefficients over atoms. An atom is a symbol (the name of
an input's dimension, or a run-time integer), or an operation that polynomials cannot express (floor division, minimum,
a slice's length, broadcasting). Two dims are equal iff their normal forms are; different normal forms say nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Atom:
    """A symbol (`op` is "size" or "value", `args` its name), or an operation on dims."""

    op: str
    args: tuple

    def __repr__(self) -> str:
        if self.op in ("size", "value"):
            return str(self.args[0])
        return f"{self.op}({', '.join(map(str, self.args))})"

    @property
    def nonnegative(self) -> bool:
        """Sizes are at least zero; a run-time value may be anything."""
        if self.op in ("size", "slice"):
            return True
        return self.op != "value" and all(is_nonnegative(a) for a in self.args)


class Dim:
    """A polynomial over atoms that is not a plain integer (those are `int`)."""

    __slots__ = ("__dict__", "terms")

    def __init__(self, terms: Mapping[tuple[Atom, ...], int]) -> None:
        self.terms = tuple(sorted(((m, c) for m, c in terms.items() if c), key=repr))

    @cached_property
    def _hash(self) -> int:
        return hash(self.terms)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dim) and self.terms == other.terms

    def __repr__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        def text(monomial: tuple[Atom, ...], factor: int) -> str:
            name = "*".join(map(repr, monomial))
            return str(factor) if not monomial else name if factor == 1 else f"{factor}*{name}"

        return " + ".join(text(m, c) for m, c in self.terms)

    def __add__(self, other: int | Dim) -> int | Dim:
        total = dict(self.terms)
        for monomial, factor in _terms(other):
            total[monomial] = total.get(monomial, 0) + factor
        return _reduced(total)

    def __mul__(self, other: int | Dim) -> int | Dim:
        total: dict[tuple[Atom, ...], int] = {}
        for left, a in self.terms:
            for right, b in _terms(other):
                monomial = tuple(sorted(left + right, key=repr))
                total[monomial] = total.get(monomial, 0) + a * b
        return _reduced(total)

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> int | Dim:
        return self * -1

    def __sub__(self, other: int | Dim) -> int | Dim:
        return self + other * -1

    def __rsub__(self, other: int) -> int | Dim:
        return -self + other


Size = int | Dim


def _terms(value: Size) -> tuple[tuple[tuple[Atom, ...], int], ...]:
    return value.terms if isinstance(value, Dim) else (((), value),)


def _reduced(terms: dict[tuple[Atom, ...], int]) -> Size:
    dim = Dim(terms)
    if not dim.terms:
        return 0
    if len(dim.terms) == 1 and dim.terms[0][0] == ():
        return dim.terms[0][1]
    return dim


def symbol(name: str) -> Dim:
    """The size called `name`: some integer >= 0."""
    return Dim({(Atom("size", (name,)),): 1})


def runtime_value(name: str) -> Dim:
    """An integer that a run of the model provides: of either sign."""
    return Dim({(Atom("value", (value_symbol(name),)),): 1})


def value_symbol(name: str) -> str:
    """The symbol of the integer that input `name` holds; a size may have that name too."""
    return f"{name}()"


def _operation(op: str, *args: Size) -> Dim:
    return Dim({(Atom(op, args),): 1})


def is_nonnegative(value: Size) -> bool:
    """Whether `value` is known to be at least zero."""
    return all(c >= 0 and all(a.nonnegative for a in m) for m, c in _terms(value))


def is_positive(value: Size) -> bool:
    """Whether `value` is known to be at least one."""
    return (
        is_nonnegative(value - 1)
        if isinstance(value, int)
        else is_nonnegative(value) and dict(value.terms).get((), 0) > 0
    )


def equal(a: Size, b: Size) -> bool | None:
    """True or False where it is certain, else None."""
    difference = a - b
    if isinstance(difference, int):
        return difference == 0
    return False if is_positive(difference) or is_positive(-difference) else None


def floor_div(a: Size, b: Size) -> Size:
    """Floor division; exact where every coefficient divides."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if isinstance(b, int) and all(c % b == 0 for _, c in _terms(a)):
        return _reduced({m: c // b for m, c in _terms(a)})
    quotient = _divided(a, b)
    return quotient if quotient is not None else _operation("floordiv", a, b)


def _divided(a: Size, b: Size) -> Size | None:
    """a / b where b is one monomial that divides every term of a."""
    if len(_terms(b)) != 1:
        return None
    (divisor, factor), total = _terms(b)[0], {}
    for monomial, c in _terms(a):
        rest = list(monomial)
        for atom in divisor:
            if atom not in rest:
                return None
            rest.remove(atom)
        if c % factor:
            return None
        total[tuple(rest)] = c // factor
    return _reduced(total)


def minimum(a: Size, b: Size) -> Size:
    """The smaller one."""
    if is_nonnegative(b - a):
        return a
    if is_nonnegative(a - b):
        return b
    return _operation("min", *sorted((a, b), key=repr))


def sliced(size: Size, start: Size, end: Size) -> Size:
    """How many of `size` entries start:end keeps, where each of the two may count from the back, as in Python."""
    return _operation("slice", size, start, end)


def maximum(a: Size, b: Size) -> Size:
    """The greater one."""
    if is_nonnegative(b - a):
        return b
    if is_nonnegative(a - b):
        return a
    return _operation("max", *sorted((a, b), key=repr))


def broadcast(a: Size | None, b: Size | None) -> Size | None:
    """The size of a dimension in which sizes a and b meet by numpy's broadcasting rule."""
    if isinstance(a, int) and a != 1:
        return a
    if isinstance(b, int) and b != 1:
        return b
    if a == 1 or a == b:
        return b
    if b == 1:
        return a
    if a is None or b is None:
        return None
    for cut, whole in ((a, b), (b, a)):
        if _is_cut_of(cut, whole):
            return whole
    return _operation("broadcast", *sorted((a, b), key=repr))


def may_be_a_cut(value: Size) -> bool:
    """Whether `value` is more than sums and products of the model's sizes."""
    return any(atom.op not in ("size", "value") for monomial, _ in _terms(value) for atom in monomial)


def _is_cut_of(cut: Size, whole: Size) -> bool:
    """Whether `cut` is what a table with n > 1 rows has of rows i to i + `whole`: where the two meet, it has them all.

    With fewer rows they meet in one case only: `cut` is 0 and `whole` is 1, one token behind the table's end, of which
    nothing would be computed. A fused operator refuses that run.
    """
    between = _operands(cut, "slice")
    if between is not None:
        rows, start, end = between
        return isinstance(rows, int) and rows > 1 and end - start == whole
    inner = _operands(cut, "max")
    if inner is not None and 0 in inner:
        cut = inner[0] + inner[1]
    for monomial, factor in _terms(cut):
        ends = _operands(Dim({monomial: factor}), "min")
        if ends is None:
            continue
        start = Dim({monomial: factor}) - cut
        starts = _operands(start, "min") or (start,)
        for rows, end in (ends, ends[::-1]):
            if isinstance(rows, int) and rows > 1 and any(end - s == whole for s in starts if s != rows):
                return len(starts) == 1 or rows in starts
    return False


def _operands(value: Size, op: str) -> tuple[Size, ...] | None:
    """The operands where `value` is that operation and nothing else."""
    if not isinstance(value, Dim) or len(value.terms) != 1:
        return None
    monomial, factor = value.terms[0]
    return monomial[0].args if factor == 1 and len(monomial) == 1 and monomial[0].op == op else None


_OPERATIONS: dict[str, Callable[..., int]] = {
    "floordiv": lambda a, b: a // b,
    "min": min,
    "max": max,
    "slice": lambda size, start, end: len(range(size)[start:end]),
    "broadcast": lambda a, b: b if a == 1 else a,
}


def evaluate(value: Size, sizes: Mapping[str, int]) -> int:
    """The integer that `value` has where the symbols have the given sizes. Raises KeyError for a missing symbol."""
    total = 0
    for monomial, factor in _terms(value):
        for atom in monomial:
            if atom.op in ("size", "value"):
                factor *= sizes[atom.args[0]]
            else:
                factor *= _OPERATIONS[atom.op](*(evaluate(a, sizes) for a in atom.args))
        total += factor
    return total


def symbols(value: Size) -> set[str]:
    """The names of all symbols in `value`."""
    found: set[str] = set()
    for monomial, _ in _terms(value):
        for atom in monomial:
            if atom.op in ("size", "value"):
                found.add(atom.args[0])
            else:
                found.update(*(symbols(a) for a in atom.args))
    return found
