"""Normalising changes no result, in the corners of the ONNX specification where no exporter goes on most days."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from graphs import check_sound, model_of, operators

import onnxfuse
from onnxfuse.normalise import normalise


def results(model: ir.Model, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options).run(None, feed)


def normalised(model: ir.Model, **feed: np.ndarray) -> ir.Model:
    """The model, normalised, after making sure that it gives what it gave before."""
    expected = results(model, feed)
    normalise(model)
    check_sound(model)
    for wanted, found in zip(expected, results(model, feed), strict=True):
        assert wanted.shape == found.shape and (wanted == found).all()
    return model


# ---- rows of a table that is cut first -------------------------------------------------------------------------------


def looked_up(index: str, constants: str, given: str, **feed: np.ndarray) -> ir.Model:
    """table[:S][i] + x, normalised."""
    body = f"count = Shape<start=1, end=2>(x) cut = Slice(table, zero, count, zero) {index} rows = Gather(cut, i)"
    model = model_of(
        f"{body} y = Add(x, rows)",
        f"float[B,S,4] x, {given}",
        "float[B,S,4] y",
        f"int64[1] zero = {{0}}, float[6,4] table = {{{', '.join(map(str, range(24)))}}}, {constants}",
    )
    return normalised(model, x=np.zeros((1, 3, 4), np.float32), **feed)


@pytest.mark.parametrize(
    ("index", "constants"),
    [
        ("i = Identity(last)", "int64[1] last = {-1}"),
        ("i = Cast<to=7>(n)", "int64 one = {1}"),
        ("two = Add(n, n) i = Sub(n, two)", "int64 one = {1}"),
        ("from = Squeeze(n) i = Range(from, none, one)", "int64 none = {0}, int64 one = {1}"),
    ],
)
def test_an_index_that_may_count_from_the_end_looks_into_what_is_cut(index, constants):
    n = np.array([1 if "Sub" in index else -1])
    assert "Slice" in operators(looked_up(index, constants, "int64[1] n", n=n))


@pytest.mark.parametrize(
    "index",
    [
        "i = Cast<to=7>(position_ids)",
        "many = Squeeze(count) i = Range(none, many, one)",
        "i = Identity(listed)",
    ],
)
def test_places_and_counts_look_into_the_whole_table(index):
    constants = "int64 none = {0}, int64 one = {1}, int64[3] listed = {2, 0, 1}"
    model = looked_up(index, constants, "int32[S] position_ids", position_ids=np.array([0, 2, 1], np.int32))
    assert "Slice" not in operators(model)


# ---- Slices whose bounds a run tells ---------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 5, 20, -3, -20])
def test_a_slice_that_may_lie_outside_stays(place):
    model = model_of(
        "end = Add(place, many) c = Slice(x, place, end, one) y = Neg(c)",
        "float[1,16] x, int64[1] place",
        "float[1,N] y",
        "int64[1] many = {16}, int64[1] one = {1}",
    )
    assert "Slice" in operators(normalised(model, x=np.arange(16, dtype=np.float32)[None], place=np.array([place])))


@pytest.mark.parametrize("bounds", ["back, far", "zero, n", "n, far", "n, back", "most, n"])
def test_the_size_of_such_a_slice_is_what_is_left(bounds):
    for n in (-20, -2, 0, 3, 20):
        model = model_of(
            f"back = Neg(n) c = Slice(x, {bounds}, zero) y = Shape(c)",
            "float[S,4] x, int64[1] n",
            "int64[2] y",
            "int64[1] far = {9223372036854775807}, int64[1] zero = {0}, int64[1] most = {-12}",
        )
        normalised(model, x=np.zeros((10, 4), np.float32), n=np.array([n]))


# ---- reductions, casts, small integers, draws ------------------------------------------------------------------------


@pytest.mark.parametrize("noop", [0, 1])
@pytest.mark.parametrize("reduction", ["ReduceSum", "ReduceMax"])
def test_a_reduction_over_an_empty_list_of_axes_reduces_all_of_them(reduction, noop):
    model = model_of(
        f"t = {reduction}<noop_with_empty_axes={noop}>(x, axes) s = Shape(x) e = Expand(t, s) y = Neg(e)",
        "float[A,B] x",
        "float[C,D] y",
        "int64[0] axes = {}",
    )
    normalised(model, x=np.arange(6, dtype=np.float32).reshape(2, 3))


def test_two_casts_in_a_row_keep_how_the_last_one_saturates():
    body = "a = Cast<to=1>(x) z = Cast<to=17, saturate=0>(a)"
    model = model_of(body, "float16[3] x", "float8e4m3fn[3] z", opset=19)
    normalise(model)
    (cast,) = model.graph
    assert cast.attributes["saturate"].value == 0


def test_a_number_that_is_cast_to_eight_bits_is_negated_before():
    """Neg takes no float8."""
    model = model_of("a = Neg(x) y = Cast<to=17>(a)", "float[3] x", "float8e4m3fn[3] y", opset=19)
    normalise(model)
    assert operators(model) == ["Neg", "Cast"]


@pytest.mark.parametrize(
    ("body", "constants", "wrapped"),
    [
        ("z = Cast<to=2>(a)", "int64[2] a = {300, -1}", [44, 255]),
        ("z = Sub(a, b)", "uint8[2] a = {1, 9}, uint8[2] b = {2, 3}", [255, 6]),
        ("z = Mul(a, a)", "int32[2] a = {100000, 3}", [1410065408, 9]),
        ("c = Neg(a) z = Neg(c)", "int8[2] a = {-128, 3}", [-128, 3]),
    ],
)
def test_integers_that_do_not_fit_wrap_around(body, constants, wrapped):
    model = model_of(f"{body} v = Cast<to=11>(z) y = Add(v, x)", "double[2] x", "double[2] y", constants)
    normalised(model, x=np.zeros(2))
    assert results(model, {"x": np.zeros(2)})[0].tolist() == wrapped


def test_a_size_that_does_not_fit_wraps_around():
    model = model_of("s = Shape(x) c = Cast<to=2>(s) y = Cast<to=7>(c)", "float[A,4] x", "int64[2] y")
    normalised(model, x=np.zeros((300, 4), np.float32))


@pytest.mark.parametrize(
    "draw", ["my.Sample(x)", "Dropout(x, half, yes)", "com.microsoft.BitmaskDropout(x, half, yes)"]
)
def test_two_draws_stay_two(draw):
    body = f"a = {draw} b = {draw} y = Sub(a, b)"
    model = model_of(body, "float[4] x", "float[4] y", "float half = {0.5}, bool yes = {1}")
    model.opset_imports["my"] = 1
    normalise(model)
    assert len(model.graph) == 3


# ---- shapes that nobody knows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["y = Sub(zero, x)", "s = Mul(x, two) y = Transpose<perm=[2,0,1]>(s)"])
def test_two_unknown_shapes_are_not_the_same(body):
    model = model_of(
        f"x = Reshape(given, sizes) {body}",
        "float[A,B] given, int64[K] sizes",
        "float[C,D,E] y",
        "float[1,1,1] zero = {0}, float[1,1,1] two = {2}",
    )
    model.graph.outputs[0].shape = None
    normalised(model, given=np.ones((2, 3), np.float32), sizes=np.array([6]))


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes_and_steps", ["", ", , steps", ", axes", ", axes, steps"])
def test_a_part_of_a_weight_in_a_file_needs_no_axes(axes_and_steps, tmp_path):
    weight = np.random.default_rng(0).standard_normal((128, 64)).astype(np.float32)
    constants = {"w": weight, "start": [1], "end": [65], "axes": [0], "steps": [2]}
    body = f"part = Slice(w, start, end{axes_and_steps}) y = MatMul(x, part)"
    rows = 32 if "steps" in axes_and_steps else 64
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 18]> g (float[B,{rows}] x) => (float[B,64] y) {{ {body} }}'
    )
    for name, values in constants.items():
        array = np.asarray(values, np.float32 if name == "w" else np.int64)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=1024)
    onnxfuse.optimize(tmp_path / "m.onnx", tmp_path / "fused.onnx", verify="model")


def test_a_table_that_is_an_output_stays_beside_its_equal():
    model = model_of(
        "a = Gather(t, i) b = Gather(u, i) y = Add(a, b)",
        "int64[S] i",
        "float[S,1100] y, float[2,1100] u",
        ", ".join(f"float[2,1100] {name} = {{{', '.join(['1'] * 2200)}}}" for name in "tu"),
    )
    normalised(model, i=np.array([1]))
