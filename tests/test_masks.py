"""Masks by meaning, where exporters name one size twice."""

import numpy as np
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


# Keys `keys` [1, L] and queries `rows` [S, 1] by their positions, the last key being the last query's own.
POSITIONS = """
    sizes = Shape(tokens) S = Gather(sizes, one) lengths = Shape(past) P = Gather(lengths, two) L = Add(S, P)
    scalar_P = Squeeze(P) scalar_L = Squeeze(L)
    columns = Range(start, scalar_L, step) lines = Range(scalar_P, scalar_L, step)
    keys = Unsqueeze(columns, nought) rows = Unsqueeze(lines, one)
    causal = LessOrEqual(keys, rows) distance = Sub(rows, keys)
"""
NUMBERS = """int64[1] nought = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3}, int64 step = {1},
    int64 start = {0}, float zero = {0}"""


def recognised(body: str, constants: str = "", inputs: str = "") -> Mask | None:
    """The closed form of the boolean mask `y` for tokens [b, s] and a past of p."""
    given = f"int64[b, s] tokens, float[b, 4, p, 16] past {inputs}"
    numbers = f"{NUMBERS}, {constants}" if constants else NUMBERS
    facts = Facts(model_of(POSITIONS + body, given, "bool[u, v, w, z] y", numbers))
    batch, queries = facts.shape(facts.model.graph.inputs[0])
    keys = queries + facts.shape(facts.model.graph.inputs[1])[2]
    return recognise(named(facts.model, "y"), (batch, queries, keys), facts)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("near = Less(distance, width) y = And(causal, near)", "int64 width = {300}"),
        (
            """d = Unsqueeze(distance, nought) near = Less(d, width)
            head = And(causal, near) y = Unsqueeze(head, nought)""",
            "int64[10, 1, 1] width = {300, 300, 300, 300, 300, 300, 300, 300, 300, 300}",
        ),
        ("d = Cast<to=1>(distance) near = Less(d, width) y = And(causal, near)", "float width = {299.5}"),
        (
            "d = Cast<to=1>(distance) r = Mul(d, width) near = Less(r, one_float) y = And(causal, near)",
            "float width = {0.0033333333}, float one_float = {1}",
        ),
        ("d = Add(distance, width) near = Less(d, start) y = And(causal, near)", "int64 width = {-300}"),
        ("d = Add(distance, width) near = Less(d, start) y = And(causal, near)", "int64 width = {-12000}"),
        (
            """shape = Shape(distance) width = ConstantOfShape<value: tensor = int64[1] {300}>(shape)
            near = Less(distance, width) y = And(causal, near)""",
            "",
        ),
    ],
    ids=("integer", "of each head", "between integers", "reciprocal", "negative", "very negative", "filled"),
)
def test_a_window_shows_however_it_is_written(body: str, constants: str):
    found = recognised(body, constants)
    assert found is None or found == Mask(causal=True, window=12000 if "12000" in constants else 300)


CUT = "first = Slice(stored, P, L, one) y = Slice(first, nought, L, two)"


def stored(shape: tuple[int, ...], allowed) -> str:
    """A stored mask, True where `allowed(query, key)`, in ONNX's text form."""
    rows, columns = np.indices(shape)
    entries = ", ".join("1" if seen else "0" for seen in allowed(rows, columns).reshape(-1))
    return f"bool[1, {shape[0]}, {shape[1]}] stored = {{{entries}}}"


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (lambda q, k: k <= q, Mask(causal=True)),
        (lambda q, k: (k <= q) & (k > q - 40), Mask(causal=True, window=40)),
        (lambda q, k: (k <= q) | ((q >= 30) & (k >= 30) & (q < 40) & (k < 40)), None),
        (lambda q, k: (k <= q) & ((k != 50) | (q == 50)), None),
    ],
    ids=("causal", "a window", "an image sees itself", "a hidden key"),
)
def test_a_stored_mask_is_compared_in_its_whole_extent(allowed, expected: Mask | None):
    assert recognised(CUT, stored((64, 64), allowed)) == expected


def test_a_stored_mask_too_large_to_be_compared_is_not_recognised(monkeypatch):
    monkeypatch.setattr("onnxfuse.masks.SCORES", 64 * 63)
    assert recognised(CUT, stored((64, 64), lambda q, k: k <= q)) is None


def test_stored_positions_need_not_be_compared_in_all_their_rows():
    body = """k = Slice(stored, nought, L, nought) r = Slice(stored, P, L, nought) c = Unsqueeze(r, one)
        y = LessOrEqual(k, c)"""
    places = ", ".join(map(str, range(5000)))
    assert recognised(body, f"int64[5000] stored = {{{places}}}") == Mask(causal=True)


def test_a_window_as_long_as_the_stored_positions_allow_is_seen():
    body = """k = Slice(stored, nought, L, nought) r = Slice(stored, P, L, nought) c = Unsqueeze(r, one)
        d = Sub(c, k) near = Less(d, width) seen = LessOrEqual(k, c) y = And(near, seen)"""
    places = ", ".join(map(str, range(100)))
    found = recognised(body, f"int64[100] stored = {{{places}}}, int64 width = {{98}}")
    assert found is None or found == Mask(causal=True, window=98)


@pytest.mark.parametrize(
    ("body", "constants", "inputs"),
    [
        (
            """image = Equal(kind, seven) q = Unsqueeze(image, two) k = Unsqueeze(image, one) both = And(q, k)
            y = Or(both, causal)""",
            "int64 seven = {7}",
            ", int64[b, l] kind",
        ),
        ("full = Not(flag) y = Or(causal, full)", "", ", bool[1] is_decoder"),
        ("full = Equal(mode, nine) y = Or(causal, full)", "int64 nine = {9}", ", int64 mode"),
        ("d = Less(distance, width) y = And(causal, d)", "", ", int64[1] width"),
    ],
    ids=("image tokens", "a flag", "a mode", "a window"),
)
def test_a_mask_that_depends_on_any_other_input_is_not_recognised(body: str, constants: str, inputs: str):
    assert recognised(body.replace("flag", "is_decoder"), constants, inputs) is None


@pytest.mark.parametrize(("shown", "recognisable"), [("Equal(input_ids, one)", False), ("Cast<to=9>(input_ids)", True)])
def test_tokens_tell_the_padding_if_all_but_zero_are_shown(shown: str, recognisable: bool):
    body = f"shown = {shown} row = Unsqueeze(shown, middle) y = And(causal, row)"
    found = recognised(body, "int64[2] middle = {1, 2}", ", int64[b, l] input_ids")
    assert (found is not None and found.causal and found.padding.name == "input_ids") == recognisable


def test_an_input_of_which_only_the_dtype_counts_is_no_obstacle():
    body = "number = Cast<to=1>(causal) like = CastLike(number, other) y = Cast<to=9>(like)"
    assert recognised(body, "", ", float16[b, s] other") == Mask(causal=True)


def test_chunks_written_as_a_reciprocal_are_no_causal_mask():
    body = """q = Cast<to=1>(rows) k = Cast<to=1>(keys) a = Mul(q, size) c = Mul(k, size) e = Floor(a) f = Floor(c)
        same = Equal(e, f) y = And(causal, same)"""
    assert recognised(body, "float size = {0.00390625}") is None
