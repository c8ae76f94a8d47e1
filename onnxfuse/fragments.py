"""Fragments of patterns: steps that can be written in several ways, which differ in roundings only.

What differs in nothing at all is brought to one form before matching (onnxfuse.normalise).
"""

from __future__ import annotations

import math

from onnxfuse.dsl import any_of, maybe, op
from onnxfuse.pattern import Pattern


def times(x: Pattern, number: float) -> Pattern:
    """x * number, for a constant"""
    return any_of(x * number, x / (1 / number))


def square(x: Pattern) -> Pattern:
    """x^2"""
    return any_of(x * x, x**2)


def reciprocal(x: Pattern) -> Pattern:
    """1 / x"""
    return any_of(op.Reciprocal(x), 1 / x, x ** (-1))


def root(x: Pattern) -> Pattern:
    """sqrt(x)"""
    return any_of(op.Sqrt(x), x**0.5)


def inverse_root(x: Pattern) -> Pattern:
    """1 / sqrt(x)"""
    return any_of(reciprocal(root(x)), root(reciprocal(x)), x ** (-0.5))


def over_root(a: Pattern, x: Pattern) -> Pattern:
    """a / sqrt(x)"""
    return any_of(a / root(x), a * inverse_root(x))


def cut(x: Pattern, size: Pattern, end: Pattern) -> list[tuple[Pattern, Pattern]]:
    """The two ways to cut the last axis of x in two; what `size` and `end` capture tells where Slices cut."""
    return [(op.Slice(x, 0, size, axes=-1), op.Slice(x, size, end, axes=-1)), op.Split(x, ..., axis=-1, outputs=2)]


def halves(x: Pattern, half: Pattern, end: Pattern) -> list[tuple[Pattern, Pattern]]:
    """The two ways to cut the last axis of x in halves; what `half` and `end` capture has to be checked."""
    sliced, (low, high) = cut(x, half, end)
    return [sliced, (low.where(_is_half, "the parts are not halves"), high)]


def _is_half(part, facts):
    whole, half = facts.shape(part.producer().inputs[0]), facts.shape(part)
    return whole is not None and half is not None and whole[-1] == 2 * half[-1]


def softmax(x: Pattern) -> Pattern:
    """exp(x) / sum(exp(x)) over the last axis"""
    raised = op.Exp(x - op.ReduceMax(x, axes=[-1], keepdims=1))
    total = op.ReduceSum(raised, axes=[-1], keepdims=1)
    return any_of(op.Softmax(x, axis=-1), raised / total, raised * reciprocal(total))


def sigmoid(z: Pattern) -> Pattern:
    """1 / (1 + exp(-z))"""
    return any_of(op.Sigmoid(z), reciprocal(1 + op.Exp(-z)))


def gelu(z: Pattern) -> Pattern:
    """z/2 * (1 + erf(z / sqrt 2))"""
    return any_of(op.Gelu(z), half_times(z, 1 + op.Erf(times(z, math.sqrt(0.5)))))


def gelu_tanh(z: Pattern) -> Pattern:
    """z/2 * (1 + tanh(sqrt(2/pi) * (z + 0.044715 z^3)))"""
    cube = any_of(z**3, z * (z * z))
    inner = any_of(z + times(cube, 0.044715), z * (1 + times(square(z), 0.044715)))
    cdf = 1 + op.Tanh(times(inner, math.sqrt(2 / math.pi)))
    return any_of(op.Gelu(z, approximate="tanh"), half_times(z, cdf))


def half_times(z: Pattern, cdf: Pattern) -> Pattern:
    """z * cdf / 2, in any order"""
    return any_of(times(z, 0.5) * cdf, z * times(cdf, 0.5), times(z * cdf, 0.5))


def times_sigmoid(a: Pattern, z: Pattern) -> Pattern:
    """a * sigmoid(z)"""
    return any_of(a * maybe.Cast(sigmoid(z)), a / (1 + op.Exp(-z)))
