"""Rotary tables that hold each entry twice: the fused operators read it once, however it was repeated."""

import numpy as np
import onnx_ir as ir
import pytest
from graphs import model_of

import onnxfuse

N, D = 3, 12  # heads, their features

ANGLE = "number = Cast<to=1>(ids) column = Unsqueeze(number, two) angle = Mul(column, frequencies)"
PAIRS = """
    even = Slice(x, nought, far, last, steps) odd = Slice(x, one, far, last, steps)
    minus = Neg(odd) m1 = Unsqueeze(minus, last) e1 = Unsqueeze(even, last)
    both = Concat<axis=-1>(m1, e1) turned = Reshape(both, of_x)
"""
SUM = "a = Mul(x, C) b = Mul(turned, S) y = Add(a, b)"
CONSTANTS = f"""float[{D // 2}] frequencies = {{1, 0.5, 0.25, 0.1, 0.05, 0.01}}, int64[1] nought = {{0}},
    int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] last = {{-1}}, int64[1] steps = {{2}}, int64[1] far = {{99}},
    int64[1] half = {{{D // 2}}}, int64[4] of_x = {{0, 0, 0, {D}}}, int64[3] rows = {{0, 0, {D}}},
    int64[4] lifted_rows = {{0, 0, 0, {D}}}, int64[4] twice = {{1, 1, 1, 2}}, int64[5] lifted_twice = {{1, 1, 1, 1, 2}},
    int64[1] behind_half = {{{D // 2 + 1}}}, int64[{D // 2}] turned_round = {{5, 4, 3, 2, 1, 0}},
    int64[{D}] in_turn = {{0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5}},
    int64[{D}] not_in_turn = {{0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 4, 5}}"""


def each(text: str) -> str:
    """The steps for cos and for sin, named apart: T stands for either."""
    return " ".join(text.replace("T", name) for name in ("cos", "sin"))


SINGLE = "cos = Cos(angle) sin = Sin(angle)"
HEADS = each("T_h = Unsqueeze(T_twice, one)")
SPELLINGS = {
    # cos and sin of angles that come in pairs: Cohere
    "of repeated angles": f"""u = Unsqueeze(angle, last) e = Expand(u, twice) angles = Reshape(e, rows)
        cos_twice = Cos(angles) sin_twice = Sin(angles) {HEADS}""",
    "of stacked angles": f"""u = Unsqueeze(angle, last) e = Concat<axis=-1>(u, u) angles = Reshape(e, rows)
        cos_twice = Cos(angles) sin_twice = Sin(angles) {HEADS}""",
    # repeated behind: Ernie
    "expanded": SINGLE + each("T_u = Unsqueeze(T, last) T_e = Expand(T_u, twice) T_twice = Reshape(T_e, rows)") + HEADS,
    "stacked": SINGLE
    + each("T_u = Unsqueeze(T, last) T_e = Concat<axis=-1>(T_u, T_u) T_twice = Reshape(T_e, rows)")
    + HEADS,
    "gathered": SINGLE + each("T_twice = Gather<axis=-1>(T, in_turn)") + HEADS,
    # both halves, of which the first is repeated once the heads' axis is there: GLM
    "from the first half": SINGLE
    + each(
        """T_b = Concat<axis=-1>(T, T) T_l = Unsqueeze(T_b, one) T_f = Slice(T_l, nought, half, last)
        T_u = Unsqueeze(T_f, last) T_e = Expand(T_u, lifted_twice) T_h = Reshape(T_e, lifted_rows)"""
    ),
}


def model(tables: str) -> ir.Model:
    body = f"{ANGLE} {tables} {PAIRS} {SUM.replace('C', 'cos_h').replace('S)', 'sin_h)')}"
    return model_of(body, f"float[B, {N}, S, {D}] x, int64[B, S] ids", f"float[B, {N}, S, {D}] y", CONSTANTS)


def operators_after(original: ir.Model) -> list[str]:
    """What a verified rewrite leaves, which computes what the original does."""
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((2, N, 5, D), dtype=np.float32), "ids": rng.integers(0, 40, (2, 5))}
    (want,) = onnxfuse.session(original).run(None, feeds)
    rewritten = onnxfuse.optimize(original, verify="match").model
    for session in (onnxfuse.session(rewritten), onnxfuse.session(rewritten, ops=[])):
        (got,) = session.run(None, feeds)
        # two products and their sum, of numbers up to 4 and angles up to 40 whose cosines are off by a unit of those
        np.testing.assert_allclose(got, want, atol=4 * 40 * np.finfo(np.float32).eps, rtol=0)
    return [node.op_type for node in rewritten.graph]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_table_of_one_entry_a_pair_is_read(spelling):
    found = operators_after(model(SPELLINGS[spelling]))
    layout = {"Transpose", "Reshape"}
    assert [op for op in found if op not in layout] == ["RotaryTable", "RotaryEmbedding"]


NOT_PAIRS = {
    "in another order": SINGLE + each("T_twice = Gather<axis=-1>(T, not_in_turn)") + HEADS,
    "in two halves": SINGLE + each("T_twice = Concat<axis=-1>(T, T)") + HEADS,
    "from another entry": SINGLE
    + each(
        """T_r = Gather<axis=-1>(T, turned_round) T_u = Unsqueeze(T, last) T_v = Unsqueeze(T_r, last)
        T_e = Concat<axis=-1>(T_u, T_v) T_twice = Reshape(T_e, rows)"""
    )
    + HEADS,
    "from the second half": SINGLE
    + each(
        """T_b = Concat<axis=-1>(T, T) T_l = Unsqueeze(T_b, one) T_f = Slice(T_l, one, behind_half, last)
        T_u = Unsqueeze(T_f, last) T_e = Expand(T_u, lifted_twice) T_h = Reshape(T_e, lifted_rows)"""
    ),
}


@pytest.mark.parametrize("spelling", NOT_PAIRS)
def test_a_table_that_does_not_repeat_each_entry_is_read_whole(spelling):
    found = operators_after(model(NOT_PAIRS[spelling]))
    assert "RotaryEmbedding" in found  # by another table, verification would have refused it
    assert {"Concat", "Gather"}.intersection(found)


@pytest.mark.parametrize("made", ["Concat<axis=-1>(angle, angle)", "Identity(angle)"])
def test_positions_of_unknown_rank_are_refused(made):
    body = f"{ANGLE} angles = {made} y = Cos(angles) z = Sin(angles)"
    model = model_of(body, "int64[B,S] ids", "float[B,S,W] y, float[B,S,W] z", CONSTANTS)
    model.graph.inputs[0].shape = None
    assert not onnxfuse.optimize(model, fusions=["rotary_table"], verify="none").report.fused


@pytest.mark.parametrize("tokens", ["4", "S"])
def test_rows_of_a_table_from_a_place_of_the_run_are_one_for_each_token(tokens):
    """Where the table ended earlier, or the place counted from its end, they would not meet."""
    body = """
        length = Shape<start=2, end=3>(x) end = Add(place, length)
        c = Slice(cos, place, end, nought) s = Slice(sin, place, end, nought)
        x1 = Slice(x, nought, half, last) x2 = Slice(x, half, far, last) minus = Neg(x2)
        turned = Concat<axis=-1>(minus, x1) a = Mul(x, c) b = Mul(turned, s) y = Add(a, b)
    """
    tables = f"float[16,{D}] cos, float[16,{D}] sin, int64[1] place"
    model = model_of(body, f"float[2,{N},{tokens},{D}] x, {tables}", f"float[2,{N},{tokens},{D}] y", CONSTANTS)
    assert onnxfuse.optimize(model).report.fused == {"RotaryEmbedding": 1}


@pytest.mark.parametrize(
    ("table", "fused"),
    [
        (f"1, 1, S, {D}", True),
        (f"B, 1, S, {D}", True),
        (f"1, 1, T, {D}", False),
        (f"C, 1, S, {D}", False),
    ],
)
def test_a_table_has_as_many_rows_as_there_are_positions(table: str, fused: bool):
    """A size by another name may be 1, one row for all positions: a graph broadcasts that, the operator refuses it."""
    body = """
        lo = Slice(x, nought, half, last) hi = Slice(x, half, far, last) minus = Neg(hi)
        turned = Concat<axis=-1>(minus, lo) a = Mul(x, cos) b = Mul(turned, sin) y = Add(a, b)
    """
    inputs = f"float[B, {N}, S, {D}] x, float[{table}] cos, float[{table}] sin"
    made = onnxfuse.optimize(model_of(body, inputs, f"float[u, {N}, v, {D}] y", CONSTANTS), verify="none").model
    assert any(node.op_type == "RotaryEmbedding" for node in made.graph) == fused


@pytest.mark.parametrize(
    ("ids", "fused"),
    [("int64[B2, S2] position_ids", True), ("int64[?, ?] position_ids", True), ("int64[B2, S2] others", False)],
    ids=("positions", "no names", "anything"),
)
def test_positions_are_as_many_as_tokens_whatever_the_exporter_calls_that(ids: str, fused: bool):
    name = ids.split()[-1]
    body = f"""
        row = Gather(words, tokens) apart = Reshape(row, heads) x = Transpose<perm=[0,2,1,3]>(apart)
        {ANGLE.replace("ids", name)} cos = Cos(angle) sin = Sin(angle)
        cos2 = Concat<axis=-1>(cos, cos) sin2 = Concat<axis=-1>(sin, sin)
        C = Unsqueeze(cos2, one) I = Unsqueeze(sin2, one)
        lo = Slice(x, nought, half, last) hi = Slice(x, half, far, last) minus = Neg(hi)
        turned = Concat<axis=-1>(minus, lo) a = Mul(x, C) b = Mul(turned, I) y = Add(a, b)
    """
    constants = f"{CONSTANTS}, int64[4] heads = {{0, 0, {N}, {D}}}"
    words = f"float[50, {N * D}] words"
    original = model_of(body, f"int64[B, S] tokens, {ids}, {words}", f"float[u, {N}, v, {D}] y", constants)
    made = onnxfuse.optimize(original, verify="none").model
    assert any(node.op_type == "RotaryEmbedding" for node in made.graph) == fused


def test_a_table_cut_where_the_past_ends_has_a_row_for_each_position():
    """Shape inference cannot tell whether all of those rows are there."""
    body = """
        past_shape = Shape<start=1, end=2>(past) count = Shape<start=2, end=3>(x) behind = Add(past_shape, count)
        C2 = Slice(cos, past_shape, behind, nought) I2 = Slice(sin, past_shape, behind, nought)
        C = Unsqueeze(C2, axes) I = Unsqueeze(I2, axes)
        lo = Slice(x, nought, half, last) hi = Slice(x, half, far, last) minus = Neg(hi)
        turned = Concat<axis=-1>(minus, lo) a = Mul(x, C) b = Mul(turned, I) y = Add(a, b)
    """
    inputs = f"float[B, {N}, S, {D}] x, float[B, P, 2] past, float[40, {D}] cos, float[40, {D}] sin"
    constants = f"{CONSTANTS}, int64[2] axes = {{0, 1}}"
    made = onnxfuse.optimize(model_of(body, inputs, f"float[u, {N}, v, {D}] y", constants), verify="match").model
    assert any(node.op_type == "RotaryEmbedding" for node in made.graph)
