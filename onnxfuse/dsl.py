"""The words a pattern file may import, and how to write one.

A fusion is a Python function whose parameters are the captures and whose result is the pattern::

    from onnxfuse.dsl import fusion, maybe, op, scalar, tensor

    @fusion(stage="norm", op="RMSNorm")
    def rms_norm(x=tensor("... D"), weight=tensor("D"), eps=scalar()):
        \"\"\"RMSNorm: y = x / sqrt(mean(x^2) + eps) * weight.\"\"\"
        h = maybe.Cast(x, to="float32")
        mean_square = op.ReduceMean(h**2 | h * h, axes=[-1], keepdims=1)
        rms = op.Sqrt(mean_square + eps)
        return maybe.Cast(h / rms | h * (1 / rms)) * weight

    @rms_norm.check
    def supported(m):
        yield m.x.dtype in m.FLOATS, "x is {m.x.dtype}"

    @rms_norm.rewrite
    def fused(new, m):
        return new.RMSNorm(m.x, m.weight, epsilon=m.eps)

Values
    The same Python variable is the same graph value. `a | b` is either, `a` first, with full backtracking; at an
    optional input `mask | None` also accepts that it is left out. Numbers and lists are constants. `+ - * / ** @`
    build Add Sub Mul Div Pow MatMul. Add, Mul, Min, Max, And, Or, Xor and Equal match in both operand orders.
    A plain function that returns a pattern is a reusable fragment. A tuple is returned for several outputs.
Operators
    `op.Softmax(x, axis=-1)`; `op.ns("com.microsoft").QuickGelu(x, alpha=1.0)`; `op.any("Identity", "Dropout")(x, ...)`
    (the `...` accepts further inputs unseen, `attributes=...` further attributes); several outputs are named by
    `low, high = op.Split(x, axis=-1, outputs=2)`, and the graph's node may have more that nobody asks for.
    A parameter is written by its name whether this opset keeps it as attribute or as input. One that is not written
    must have the standard's default in the graph (so `op.Gemm(a, b)` is no transposed Gemm); a required one must be
    written, but for Cast's `to`. Values: a number, list, dtype name (`to="float32"`), a set of accepted values,
    `attr("name")` to capture it, `attr()` to accept any, or a pattern if the graph gives it as an input. Axes count
    from either end.
Conditions
    `pattern.where(lambda value, facts: ..., "reason")` is evaluated wherever the pattern matches, inside alternatives
    too. Checks of a fusion yield `(condition, "reason {m.x.dtype}")` and end at the first false condition.
Dimensions
    `tensor("B S D")` names dimensions; a name stands for one size in the whole match, `B|1` is that size or 1, `_`
    any size, a number itself, a leading `...` any further dimensions. What is unknown agrees with everything.
"""

from __future__ import annotations

from collections.abc import Callable

from onnxfuse import fusion as fusion_module
from onnxfuse import operators, pattern
from onnxfuse.fusion import Fusion, Refuse, make_fusion
from onnxfuse.pattern import Attribute, Either, Input, Out, Pattern, PatternError, as_pattern, caller, operator

__all__ = ["Refuse", "any_of", "attr", "constant", "fusion", "maybe", "one_of", "op", "scalar", "tensor"]

for _module in (__file__, fusion_module.__file__, pattern.__file__):
    pattern.write_as_engine(_module)


def fusion(*, stage: str, op: str | None = None, tolerance: dict[str, float] | None = None) -> Callable[..., Fusion]:
    """Make a fusion of a pattern function.

    Parameters
    ----------
    stage
        One of `onnxfuse.fusion.STAGES`; stages run in that order, larger patterns first within one.
    op
        The operator of domain `onnxfuse` that the rewrite builds; None if it builds standard operators only.
    tolerance
        Relative error by dtype that the replacement may add, `{"float16": 2e-3}`.
    """
    return lambda function: make_fusion(function, stage, op, dict(tolerance or {}))


def tensor(dims: str | None = None) -> Input:
    """Capture a value; `dims` such as `"B S D"`, `"... D"`, `"B|1 1 _"`. None: of any rank."""
    if dims is None:
        return Input()
    words = dims.split()
    leading = words[:1] == ["..."]
    return Input(dims=tuple(_dimension(word) for word in words[leading:]), leading=leading)


def _dimension(word: str) -> str | int | tuple[str]:
    if word.isdigit():
        return int(word)
    name, bar, one = word.partition("|")
    if not name.isidentifier() or (bar and one != "1"):
        raise PatternError(
            f"{caller()}: {word!r} is no dimension; write a name, a size, 'name|1', '_' or a leading '...'"
        )
    return (name,) if bar else name


def scalar() -> Input:
    """Capture a constant of one element, whatever its rank; the match holds it as a Python number."""
    return Input(is_scalar=True, needs_constant=True)


def constant(dims: str | None = None) -> Input:
    """Capture a constant: an initializer or the output of a Constant node, of any size."""
    made = tensor(dims)
    made.needs_constant = True
    return made


def attr(name: str | None = None) -> Attribute:
    """Capture an attribute's value under `name` (the same name twice: the same value); without name accept any."""
    return Attribute(name)


def one_of(tag: str, **alternatives: object) -> Either:
    """`one_of("scaling", mul=a * s, none=a)`: alternatives whose taken name is `m.scaling`."""
    if len(alternatives) < 2:
        raise PatternError(f"{caller()}: one_of({tag!r}) needs two or more alternatives")
    return Either([as_pattern(value) for value in alternatives.values()], tag, tuple(alternatives))


def any_of(*alternatives: object) -> Pattern:
    """`any_of(a, b, c)` is `a | b | c`, for alternatives computed by a loop."""
    if not alternatives:
        raise PatternError(f"{caller()}: any_of() needs an alternative")
    return (
        Either([as_pattern(value) for value in alternatives]) if len(alternatives) > 1 else as_pattern(alternatives[0])
    )


class _Operators:
    """`op`: builds operator patterns by attribute access."""

    def __init__(self, domain: str) -> None:
        self._domain = domain

    def __getattr__(self, op_type: str) -> Callable[..., Out | tuple[Out, ...]]:
        return self.any(op_type)

    def any(self, *op_types: str) -> Callable[..., Out | tuple[Out, ...]]:
        """One application of any of these operators."""
        ops = tuple((self._domain, op_type) for op_type in op_types)

        def build(*inputs: object, outputs: int = 1, **parameters: object) -> Out | tuple[Out, ...]:
            return operator(ops, inputs, parameters, outputs)

        return build

    def ns(self, domain: str) -> _Operators:
        """The operators of another domain."""
        return _Operators(operators.STANDARD if domain == "ai.onnx" else domain)


class _Optional:
    """`maybe`: `maybe.Cast(x)` is `op.Cast(x) | x`."""

    def __init__(self, domain: str) -> None:
        self._operators = _Operators(domain)

    def __getattr__(self, op_type: str) -> Callable[..., Either]:
        return self.any(op_type)

    def any(self, *op_types: str) -> Callable[..., Either]:
        """One application of any of these operators, or none."""

        def build(value: object, *inputs: object, **parameters: object) -> Either:
            inner = as_pattern(value)
            return Either([self._operators.any(*op_types)(inner, *inputs, **parameters), inner])

        return build

    def ns(self, domain: str) -> _Optional:
        """Optional operators of another domain."""
        return _Optional(domain)


op = _Operators(operators.STANDARD)
maybe = _Optional(operators.STANDARD)
