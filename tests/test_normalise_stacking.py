"""Movement after a Concat, sizes as vectors, repeated rows: the same values in fewer nodes, or nothing is touched."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from graphs import check_sound, model_of, operators

from onnxfuse.facts import Facts
from onnxfuse.normalise import normalise, tidy

SIZES = {"B": 2, "S": 5, "L": 7}


def results(model: ir.Model) -> list[np.ndarray]:
    """The outputs for random inputs."""
    rng = np.random.default_rng(0)
    feeds = {}
    for value in model.graph.inputs:
        shape = [d if isinstance(d, int) else SIZES[d.value] for d in value.shape]
        integer = value.dtype == ir.DataType.INT64
        feeds[value.name] = np.full(shape, 3) if integer else rng.standard_normal(shape).astype(np.float32)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, feeds)


def tidied(body: str, inputs: str, outputs: str, constants: str = "", *, changes: bool = True) -> list[str]:
    """The operators after `tidy`, which must not change what is computed."""
    model = model_of(body, inputs, outputs, constants)
    before, count = results(model), len(list(model.graph))
    tidy(model, Facts(model))
    check_sound(model)
    for got, want in zip(results(model), before, strict=True):
        np.testing.assert_array_equal(got, want)
    assert (len(list(model.graph)) < count) == changes
    return operators(model)


STACK = "float[B,S,32] a, float[B,S,32] b"
AXIS = "int64[1] one = {1}, int64[4] heads = {0, 0, 4, 8}"


def test_layers_are_stacked_before_they_are_reshaped():
    body = """
        c = Relu(a) d = Relu(b)
        ch = Reshape(c, heads) dh = Reshape(d, heads)
        cs = Unsqueeze(ch, one) ds = Unsqueeze(dh, one)
        y = Concat<axis=1>(cs, ds)
    """
    found = tidied(body, STACK, "float[B,2,S,4,8] y", AXIS)
    assert found == ["Relu", "Relu", "Concat", "Reshape"]


def test_reshaped_parts_that_are_read_elsewhere_are_stacked_from_where_they_come():
    """The heads of `a` are an output as well: its Reshape stays, the Unsqueezes go."""
    body = """
        ah = Reshape(a, heads) bh = Reshape(b, heads)
        as = Unsqueeze(ah, one) bs = Unsqueeze(bh, one)
        y = Concat<axis=1>(as, bs)
        z = Relu(ah)
    """
    found = tidied(body, STACK, "float[B,2,S,4,8] y, float[B,S,4,8] z", AXIS)
    assert sorted(found) == ["Concat", "Relu", "Reshape", "Reshape"]


def test_parts_that_were_reshaped_differently_are_joined_at_the_nearest_equal_shape():
    body = """
        ah = Reshape(a, heads) bh = Reshape(b, heads)
        as = Unsqueeze(ah, one) bs = Unsqueeze(bh, one)
        y = Concat<axis=1>(as, bs)
    """
    found = tidied(body, "float[B,S,32] a, float[B,S,2,16] b", "float[B,2,S,4,8] y", AXIS)
    assert sorted(found) == ["Concat", "Reshape", "Reshape", "Reshape"]


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        # the new axis is the last: the parts alternate
        ("as = Unsqueeze(a, last) bs = Unsqueeze(b, last) y = Concat<axis=3>(as, bs)", "float[B,S,32,2] y"),
        # one part has another shape
        ("as = Unsqueeze(a, one) bs = Unsqueeze(b, one) y = Concat<axis=2>(as, bs)", "float[B,1,T,32] y"),
        # both parts are read elsewhere
        (
            "as = Unsqueeze(a, one) bs = Unsqueeze(b, one) y = Concat<axis=1>(as, bs) z = Neg(as) w = Neg(bs)",
            "float[B,2,S,32] y, float[B,1,S,32] z, float[B,1,S,32] w",
        ),
        # one part is: as many nodes after as before
        (
            "as = Unsqueeze(a, one) bs = Unsqueeze(b, one) y = Concat<axis=1>(as, bs) z = Neg(as)",
            "float[B,2,S,32] y, float[B,1,S,32] z",
        ),
        # one part is no reshape
        ("as = Unsqueeze(a, one) bs = Neg(as) y = Concat<axis=1>(as, bs)", "float[B,2,S,32] y"),
    ],
    ids=["last axis", "inner axis", "all read elsewhere", "one read elsewhere", "not reshaped"],
)
def test_stacks_that_are_left_alone(body: str, outputs: str):
    inputs = STACK if "axis=2" not in body else "float[B,S,32] a, float[B,L,32] b"
    tidied(body, inputs, outputs, "int64[1] one = {1}, int64[1] last = {3}", changes=False)


SIZE = "int64 zero = {0}, int64 first = {1}, int64[1] front = {0}, int64[1] one = {1}"


def test_sizes_are_computed_as_vectors():
    body = """
        s = Shape(x) n = Gather(s, first) e = Add(pos, n)
        from = Unsqueeze(pos, front) to = Unsqueeze(e, front)
        y = Slice(w, from, to, one)
    """
    found = tidied(body, "float[B,S] x, float[B,16] w, int64 pos", "float[B,T] y", SIZE)
    assert found == ["Unsqueeze", "Shape", "Gather", "Add", "Slice"]


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        (
            "e = Add(pos, n) from = Unsqueeze(pos, front) to = Unsqueeze(e, front) y = Slice(w, from, to, one)",
            "float[B,T] y, int64 e",
        ),
        ("e = Add(pos, n) to = Unsqueeze(e, front) y = Slice(w, front, to, one)", "float[B,T] y"),
    ],
    ids=["the scalar is an output", "its operands are scalars only"],
)
def test_sizes_that_stay_scalars(body: str, outputs: str):
    inputs = "float[B,16] w, int64 pos, int64 n"
    tidied(body, inputs, outputs, SIZE, changes=False)


REPEAT = "int64[1] group = {3}, int64[5] wide = {1, 1, 1, 3, 1}, int64[4] merged = {0, 0, 6, 8}"


@pytest.mark.parametrize(
    ("axis", "repeated"),
    [("{3}", True), ("{2}", False)],
    ids=["each head", "the heads as a whole"],
)
def test_repeated_rows_are_repeated_after_their_transpose(axis: str, repeated: bool):
    """Only for repeat_interleave: [k0 k0 k0 k1 k1 k1], not [k0 k1 k0 k1 k0 k1]."""
    constants = f"int64[1] group = {axis}, {REPEAT.split(', ', 1)[1]}"
    if not repeated:
        constants = constants.replace("{1, 1, 1, 3, 1}", "{1, 1, 3, 1, 1}")
    body = """
        u = Unsqueeze(x, group) e = Expand(u, wide) r = Reshape(e, merged)
        t = Transpose<perm=[0,2,1,3]>(r) y = Relu(t)
    """
    model = model_of(body, "float[B,S,2,8] x", "float[B,6,S,8] y", constants)
    want = results(model)
    normalise(model)
    check_sound(model)
    np.testing.assert_array_equal(results(model)[0], want[0])
    assert (operators(model)[0] == "Transpose") == repeated
