"""Masks by meaning, where exporters name one size twice."""

import pytest
from graphs import model_of, named

from onnxfuse.facts import Facts
from onnxfuse.masks import Mask, recognise

# A causal mask made for a first cache's length, cut to that of this layer's keys.
BODY = """
    sizes = Shape(tokens)
    S = Gather(sizes, one)
    first_shape = Shape(first)
    P = Gather(first_shape, two)
    shape = Shape(past)
    p = Gather(shape, two)
    all = Add(S, P)
    scalar_P = Squeeze(P)
    scalar_L = Squeeze(all)
    rows = Range(scalar_P, scalar_L, step)
    columns = Range(start, scalar_L, step)
    column = Unsqueeze(rows, one)
    seen = LessOrEqual(columns, column)
    whole = Where(seen, zero, least)
    own = Add(S, p)
    cut = Slice(whole, origin, own, one)
    y = Unsqueeze(cut, axes)
"""
CONSTANTS = """int64[1] one = {1}, int64[1] two = {2}, int64 step = {1}, int64 start = {0}, int64[1] origin = {0},
    float zero = {0}, float least = {-3.4e38}, int64[2] axes = {0, 1}"""


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ("float[b, 4, past_0, 16] first", Mask(causal=True)),
        ("float[b, 4, past_1, 16] first", Mask(causal=True)),
        ("int64[b, 4, past_0, 16] first", None),
        ("float[b, 4, past_0, other] first", None),
    ],
    ids=("a cache", "a cache of the same symbol", "not a cache: integers", "not a cache: its last size is open"),
)
def test_caches_of_all_layers_are_equally_long(first: str, expected: Mask | None):
    inputs = f"int64[b, s] tokens, {first}, float[b, 4, past_1, 16] past"
    facts = Facts(model_of(BODY, inputs, "float[u, v, w, z] y", CONSTANTS))
    batch, queries = facts.shape(facts.model.graph.inputs[0])
    keys = queries + facts.shape(facts.model.graph.inputs[2])[2]
    assert recognise(named(facts.model, "y"), (batch, queries, keys), facts) == expected


def test_caches_of_rows_are_equally_long_too():
    inputs = "int64[b, s] tokens, float[b, past_0, 4, 16] first, float[b, past_1, 4, 16] past"
    body = BODY.replace("(first_shape, two)", "(first_shape, one)").replace("(shape, two)", "(shape, one)")
    facts = Facts(model_of(body, inputs, "float[u, v, w, z] y", CONSTANTS))
    batch, queries = facts.shape(facts.model.graph.inputs[0])
    keys = queries + facts.shape(facts.model.graph.inputs[2])[1]
    assert recognise(named(facts.model, "y"), (batch, queries, keys), facts) == Mask(causal=True)


@pytest.mark.parametrize("dtype", ["float", "float16", "bfloat16"])
def test_a_mask_is_recognised_in_every_dtype(dtype: str):
    """ONNX Runtime's CPU provider has no Where in bfloat16."""
    body = BODY.replace(
        "whole = Where(seen, zero, least)",
        "kept = CastLike(zero, w) low = CastLike(least, w)whole = Where(seen, kept, low)",
    ).replace("least", "hidden")
    constants = CONSTANTS.replace("-3.4e38", "-1e4").replace("least", "hidden")
    facts = Facts(
        model_of(
            body,
            f"int64[b, s] tokens, float[b, 4, past, 16] first, float[b, 4, past, 16] past, {dtype} w",
            f"{dtype}[u, v, k, z] y",
            constants,
        )
    )
    batch, queries = facts.shape(facts.model.graph.inputs[0])
    keys = queries + facts.shape(facts.model.graph.inputs[2])[2]
    assert recognise(named(facts.model, "y"), (batch, queries, keys), facts) == Mask(causal=True)
