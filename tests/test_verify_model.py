"""Two whole models are compared on inputs drawn from what the inputs mean."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import model_of
from onnx import TensorProto, helper
from small_models import embedding_model, padded_model, written

from onnxfuse.errors import UsageError
from onnxfuse.facts import Facts
from onnxfuse.verify.compare import defined, difference
from onnxfuse.verify.feeds import draw, grid, visible
from onnxfuse.verify.interface import Interface, Point
from onnxfuse.verify.model import validate
from onnxfuse.verify.sessions import Session
from onnxfuse.verify.trial import POINTS


def inputs_model(*inputs: tuple[str, int, list]) -> ir.Model:
    """A model with the given inputs and nothing that uses them."""
    infos = [helper.make_tensor_value_info(name, dtype, shape) for name, dtype, shape in inputs]
    return ir.from_proto(helper.make_model(helper.make_graph([], "inputs", infos, [])))


def cached_model() -> ir.Model:
    """Inputs as exporters with a KV cache name them, the symbols of the mask unrelated to the others."""
    return inputs_model(
        ("input_ids", TensorProto.INT64, ["s21", "s50"]),
        ("attention_mask", TensorProto.INT64, ["s6", "s81"]),
        ("position_ids", TensorProto.INT64, ["s21", "s50"]),
        ("past_key_values.0.key", TensorProto.FLOAT16, ["s21", 2, "s57", 16]),
        ("past_key_values.0.value", TensorProto.FLOAT16, ["s21", 2, "s59", 16]),
    )


def test_cached_inputs_are_drawn_with_tied_sizes():
    feed = draw(Interface.of(cached_model()), Point(3, 4, 5, "left"))
    assert {name: array.shape for name, array in feed.items()} == {
        "input_ids": (3, 4),
        "attention_mask": (3, 9),
        "position_ids": (3, 4),
        "past_key_values.0.key": (3, 2, 5, 16),
        "past_key_values.0.value": (3, 2, 5, 16),
    }
    mask = feed["attention_mask"]
    assert mask.dtype == np.int64 and mask[0].all() and mask[:, -1].all() and not mask[1:, 0].any()
    np.testing.assert_array_equal(feed["position_ids"], (np.cumsum(mask, axis=1) - 1)[:, 5:])
    assert feed["past_key_values.0.key"].dtype == np.float16


@pytest.mark.parametrize("shape", [["b", 2, "p", 16], ["b", "p", 2, 16]])
def test_the_past_is_the_open_axis_of_a_cache_beside_the_heads(shape):
    model = inputs_model(("input_ids", 7, ["b", "s"]), ("past0", 1, shape))
    sizes = dict(zip(shape, draw(Interface.of(model), Point(3, 4, 5))["past0"].shape, strict=True))
    assert sizes == {"b": 3, "p": 5, 2: 2, 16: 16}


def in_place_model(length: int | str) -> ir.Model:
    """A model that puts the rows of new keys into a cache [B, 2, `length`, 16], from a given position on."""
    return model_of(
        "turned = Transpose<perm=[2,0,1,3]>(cache) written = ScatterND(turned, places, rows)"
        "present = Transpose<perm=[1,2,0,3]>(written)",
        inputs=f"int64[B,S] input_ids, int64[S,1] places, int64 past_length, float[S,B,2,16] rows, "
        f"float[B,2,{length},16] cache, int64[B,T] attention_mask",
        outputs=f"float[B,2,{length},16] present",
    )


def test_a_cache_written_in_place_has_room_for_the_new_tokens():
    feed = draw(Interface.of(in_place_model("M")), Point(3, 4, 5))
    assert feed["cache"].shape == (3, 2, 9, 16)
    assert feed["past_length"] == 5


def test_what_a_model_appends_to_is_a_cache_whatever_its_name():
    model = model_of(
        "all = Concat<axis=2>(k0, new)",
        inputs="int64[B,S] input_ids, float[B,2,P,16] k0, float[B,2,S,16] new, int64[B,T] attention_mask",
        outputs="float[B,2,L,16] all",
    )
    roles = {entry.name: entry.role for entry in Interface.of(model).inputs}
    assert (roles["k0"], roles["new"]) == ("past", "values")
    assert draw(Interface.of(model), Point(3, 4, 5))["k0"].shape == (3, 2, 5, 16)


@pytest.mark.parametrize("dtype", [TensorProto.INT64, TensorProto.BOOL])
def test_numbers_as_long_as_nothing_else_are_a_mask(dtype: int):
    model = inputs_model(
        ("input_ids", 7, ["b", "s"]),
        ("shown", dtype, ["b", "t"]),
        ("places", 7, ["b", "s"]),
        ("past.key", 1, ["b", 2, "p", 16]),
    )
    assert [entry.role for entry in Interface.of(model).inputs] == ["tokens", "mask", "numbers", "past"]
    assert draw(Interface.of(model), Point(3, 4, 5, "left"))["shown"].shape == (3, 9)


def test_no_more_tokens_are_drawn_than_a_cache_of_fixed_size_holds():
    points = grid(Interface.of(in_place_model(8)))
    assert max(point.total for point in points) == 8
    assert all(point.length >= 1 and point.past >= 0 for point in points)


def test_a_size_named_by_its_number_is_that_number():
    model = inputs_model(("input_ids", 7, ["b", "s"]), ("past.key", 1, ["b", "2", "p", "16"]))
    assert draw(Interface.of(model), Point(3, 4, 5))["past.key"].shape == (3, 2, 5, 16)
    assert Facts(model).shape(model.graph.inputs[1])[1::2] == (2, 16)


def test_sizes_that_the_model_fixes_are_kept():
    model = inputs_model(("input_ids", 7, [2, 3]), ("attention_mask", 7, [2, 8]), ("past.key", 1, [2, 4, 5, 16]))
    points = grid(Interface.of(model))
    assert {(p.batch, p.length, p.past) for p in points} == {(2, 3, 5)}
    assert {p.padding for p in points} == {"none", "left", "right"}


@pytest.mark.parametrize(("length", "samples"), [(3, 3), (1024, 1)])
def test_one_size_is_drawn_several_times_only_if_it_shows_few_tokens(length, samples):
    points = grid(Interface.of(inputs_model(("input_ids", 7, [1, length]))))
    assert [point.sample for point in points] == list(range(samples))


def test_an_unnamed_float_mask_beside_token_ids_is_recognised():
    proto = embedding_model()
    proto.graph.input.append(helper.make_tensor_value_info("input1", TensorProto.FLOAT, ["batch", "sequence"]))
    roles = {entry.name: entry.role for entry in Interface.of(ir.from_proto(proto)).inputs}
    assert roles == {"input_ids": "tokens", "input1": "mask"}


def test_token_ids_stay_inside_the_embedding_table():
    interface = Interface.of(ir.from_proto(embedding_model(rows=3)))
    tokens = draw(interface, Point(3, 17, 0))["input_ids"]
    assert tokens.shape == (3, 17) and set(np.unique(tokens)) == {0, 1, 2}


def test_offset_and_square_mask_of_a_cache_interface():
    model = inputs_model(
        ("x", 1, ["batch", "seq_len", 8]),
        ("attn_mask", 1, ["batch", 32, 32]),
        ("k_cache", 1, ["batch", 2, "pos", 4, 16]),
        ("pos", 7, []),
    )
    feed = draw(Interface.of(model), Point(1, 3, 5))
    assert feed["x"].shape == (1, 3, 8) and feed["k_cache"].shape == (1, 2, 5, 4, 16)
    assert feed["pos"].shape == () and feed["pos"] == 5
    np.testing.assert_array_equal(feed["attn_mask"][0] == 0, np.tri(32, dtype=bool))


def test_a_mask_and_positions_of_other_tokens_are_drawn_all_the_same():
    """An encoder's next to a decoder's: no size of one says anything of the other."""
    model = inputs_model(
        ("decoder_input_ids", 7, [2, 3]),
        ("decoder_attention_mask", 7, [2, 3]),
        ("encoder_attention_mask", 7, [2, 11]),
        ("encoder_position_ids", 7, [2, 11]),
    )
    interface = Interface.of(model)
    (point, *_) = grid(interface)
    feed = draw(interface, point)
    assert feed["decoder_attention_mask"].shape == (2, 3)
    assert feed["encoder_attention_mask"].shape == (2, 11) and feed["encoder_attention_mask"].all()
    np.testing.assert_array_equal(feed["encoder_position_ids"][0], np.arange(11))


@pytest.mark.parametrize("padding", ["left", "right"])
def test_every_row_of_a_padded_batch_keeps_a_visible_token(padding):
    for batch in (2, 3, 7):
        for length, past in ((2, 0), (17, 0), (1, 1), (4, 64)):
            if padding == "right" and length < 2:
                continue
            mask = visible(Point(batch, length, past, padding))
            assert mask[0].all() and mask.any(axis=1).all() and not mask[1:].all(axis=1).any()


def test_undefined_values_are_those_of_padding_tokens():
    point = Point(2, 3, 2, "left")  # two of the five tokens of row 1 may be padding
    pads = visible(point)
    assert not pads[1, 0] and pads[0].all()
    np.testing.assert_array_equal(defined((2, 3, 8), point)[..., 0], pads[:, 2:])
    np.testing.assert_array_equal(defined((2, 4, 5, 16), point)[:, 0, :, 0], pads)
    np.testing.assert_array_equal(defined((2, 3, 4, 16), point)[:, :, 0, 0], pads[:, 2:])
    assert defined((7, 3), point) is None and defined((2, 3, 8), Point(2, 3, 2)) is None


def test_difference_is_relative_to_the_value_or_the_size_of_its_neighbours():
    reference = np.array([[100.0, 0.0], [1.0, 1.0]])
    actual = reference + np.array([[1.0, 1.0], [0.0, 0.0]])
    found = difference(reference, actual)
    assert found.max_abs == 1 and found.worst == (0, 1) and found.compared == 4
    assert found.max_rel == pytest.approx(1 / np.sqrt(np.mean(reference**2)))
    assert difference(reference, actual, np.array([[True, False], [True, True]])).max_rel == pytest.approx(0.01)


def test_difference_in_shape_or_in_nan_is_infinite():
    ones = np.ones(3)
    assert difference(ones, np.ones(4)).max_rel == np.inf
    assert difference(ones, np.array([1, np.nan, 1])).max_rel == np.inf
    assert difference(np.array([1, np.nan, 1]), ones).max_rel == np.inf
    assert difference(np.array([1, np.nan, np.inf]), np.array([1, np.nan, np.inf])).max_rel == 0
    assert difference(np.zeros(2), np.array([0, 1e-30])).max_rel == np.inf


def test_equal_models_pass_on_the_whole_grid(tmp_path):
    path = written(embedding_model(), tmp_path)
    result = validate(path, path)
    assert result.passed and [check.name for check in result.outputs] == ["logits"]
    assert result.outputs[0].max_abs == 0
    assert result.outputs[0].compared == (1 + 3) * (1 + 4 + 17) * 16  # nothing masks or remembers: six sizes


def test_a_wrong_weight_is_caught_and_located(tmp_path):
    result = validate(embedding := written(embedding_model(), tmp_path), ir.from_proto(embedding_model(scale=1.01)))
    assert embedding.exists() and not result.passed
    (check,) = result.outputs
    assert check.max_rel == pytest.approx(0.01, rel=0.1) and not check.passed and len(check.worst) == 3


def test_tolerance_is_the_callers(tmp_path):
    original, other = written(embedding_model(), tmp_path), ir.from_proto(embedding_model(scale=1.01))
    assert validate(original, other, tolerance=0.05).passed
    assert not validate(original, other, tolerance=0.005).passed


def test_a_difference_on_padding_alone_passes_and_elsewhere_does_not():
    original = ir.from_proto(padded_model())
    assert validate(original, ir.from_proto(padded_model(leak=10.0))).passed
    swapped = padded_model()
    next(node for node in swapped.graph.node if node.op_type == "ReduceSum").input[0] = "column"
    assert not validate(original, ir.from_proto(swapped)).passed


def test_what_an_original_makes_of_nan_beside_padding_is_not_compared():
    """As one does that hides scores by -infinity: its padding tokens are NaN, and in the next layer all others are."""
    proto = padded_model()
    proto.graph.node[-1].output[0] = "whole"
    for node in (
        helper.make_node("ReduceMin", ["mask"], ["none_hidden"], axes=[1], keepdims=1),
        helper.make_node("Div", ["none_hidden", "none_hidden"], ["one_or_nan"]),
        helper.make_node("Unsqueeze", ["one_or_nan", "last"], ["factor"]),
        helper.make_node("Mul", ["whole", "factor"], ["y"]),
    ):
        proto.graph.node.append(node)
    spreading, right = ir.from_proto(proto), ir.from_proto(padded_model())
    result = validate(spreading, right)
    assert result.passed
    assert "lets NaN spread from padding" in result.notes[1]
    assert not validate(right, spreading).passed
    proto.graph.node[3].input[0] = "column"
    assert not validate(ir.from_proto(proto), right).passed


def only_for(count: int) -> ir.Model:
    """A model that runs only when batch * sequence is a multiple of `count`."""
    proto = embedding_model()
    proto.graph.node.append(helper.make_node("Reshape", ["logits", "flat"], ["groups"]))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, 16 * count]), "flat"))
    proto.graph.output.append(helper.make_tensor_value_info("groups", TensorProto.FLOAT, ["groups", 16 * count]))
    return ir.from_proto(proto)


def test_sizes_that_the_original_rejects_are_named():
    result = validate(only_for(4), only_for(4))
    assert result.passed
    assert any("the original rejects batch=1 length=1 past=0" in note for note in result.notes)


def test_an_original_that_onnxruntime_does_not_load_is_an_error_with_a_way_out():
    """It has next to no operators in bfloat16 on the CPU."""
    model = ir.from_onnx_text(
        '<ir_version: 8, opset_import: ["" : 18]> g (bfloat16[N] x) => (bfloat16[N] y) {y = Exp(x)}'
    )
    with pytest.raises(UsageError, match=r"Exp.*--verify match"):
        validate(model, model)


def test_an_original_that_never_runs_is_an_error():
    with pytest.raises(UsageError, match="runs on none of the generated inputs"):
        validate(only_for(1009), only_for(1009))


def test_a_fused_model_that_does_not_load_or_run_fails():
    unknown = embedding_model()
    unknown.graph.node[-1].op_type = "NoSuchOperator"
    result = validate(ir.from_proto(embedding_model()), ir.from_proto(unknown))
    assert not result.passed and "cannot load the model" in result.notes[-1]
    picky = embedding_model()
    picky.graph.node.append(helper.make_node("Reshape", ["logits", "flat"], ["groups"]))
    picky.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, 16 * 1009]), "flat"))
    result = validate(ir.from_proto(embedding_model()), ir.from_proto(picky))
    assert not result.passed and "the fused model fails on batch=1 length=1 past=0" in result.notes[-1]


def test_a_model_that_rounds_activations_to_8_bits_gets_the_tolerance_that_this_needs():
    quantised = embedding_model()
    quantised.graph.node.extend(
        [
            helper.make_node("DynamicQuantizeLinear", ["scaled"], ["bytes", "step", "zero"]),
            helper.make_node("DequantizeLinear", ["bytes", "step", "zero"], ["rounded"]),
        ]
    )
    project = next(node for node in quantised.graph.node if node.name == "project")
    project.input[0] = "rounded"
    quantised.graph.node.remove(project)
    quantised.graph.node.append(project)
    model = ir.from_proto(quantised)
    assert validate(model, model).outputs[0].tolerance == 0.3
    assert validate(model, model, tolerance=1e-3).outputs[0].tolerance == 1e-3


def test_a_float_output_of_half_precision_arithmetic_gets_the_tolerance_of_that():
    half = embedding_model()
    for name in ("table", "epsilon", "gain", "head"):
        (tensor,) = [tensor for tensor in half.graph.initializer if tensor.name == name]
        array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))
    half.graph.node[-1].output[0] = "half_logits"
    half.graph.node.append(helper.make_node("Cast", ["half_logits"], ["logits"], to=TensorProto.FLOAT))
    model = ir.from_proto(half)
    assert validate(model, model).outputs[0].tolerance == 4e-2


def test_models_with_different_interfaces_are_not_compared():
    other = embedding_model()
    other.graph.input[0].name = other.graph.node[0].input[1] = "tokens"
    with pytest.raises(UsageError, match="different inputs: input_ids INT64 of rank 2 and tokens INT64 of rank 2"):
        validate(ir.from_proto(embedding_model()), ir.from_proto(other))


def test_large_weights_reach_a_session_without_being_serialised():
    model = ir.from_proto(embedding_model(rows=4096))
    session = Session(model)
    assert len(session._weights) == 2
    logits = session.run({"input_ids": np.array([[5]])})["logits"]
    assert logits.shape == (1, 1, 4096) and np.isfinite(logits).all() and logits.std() > 0.1


def test_bfloat16_goes_in_and_out():
    info = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", info[:1], info[1:])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    x = np.array([1.5, -2, 0], ir.DataType.BFLOAT16.numpy())
    y = Session(model).run({"x": x})["y"]
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(x.astype(np.float32), y.astype(np.float32))


COMPARING = """
    <ir_version: 10, opset_import: ["" : 18]>
    g (int64[b, s] input_ids, int64[b, s] kind, int64 mode, bool[1] flag, float[50, 8] table)
    => (float[b, s, 8] x, bool[b, s] padding, bool[b, s] image, bool full, bool[1] not_flag)
    <int64 pad = {40}, int64[1] seven = {7}, int64 far = {999}> {
        x = Gather(table, input_ids) padding = Equal(input_ids, pad) other = Equal(far, input_ids)
        u = Unsqueeze(kind, one) one = Constant<value_ints = [1]>() f = Cast<to=1>(u) seven_f = Cast<to=1>(seven)
        i = Less(f, seven_f) image = Squeeze(i, one)
        nine = Constant<value_int = 9>() full = Equal(mode, nine) not_flag = Not(flag)
    }
"""


def test_numbers_meet_what_the_model_compares_them_with():
    """Two image tokens behind each other, say: only they show what is special about number seven."""
    interface = Interface.of(ir.from_onnx_text(COMPARING))
    assert [entry.compared for entry in interface.inputs] == [(40, 999), (7,), (9,), (), ()]
    feeds = [draw(interface, point) for point in grid(interface)]
    ids = np.concatenate([feed["input_ids"].reshape(-1) for feed in feeds])
    assert np.mean(ids == 40) > 0.02 and ids.max() < 50  # inside the table, whatever it is compared with
    kinds = np.concatenate([feed["kind"].reshape(-1) for feed in feeds])
    assert {0, 1, 2, 3, 6, 7, 8} == set(kinds.tolist())
    modes = {int(feed["mode"]) for feed in feeds}
    assert 9 in modes and modes & {0, 1, 2, 3}


def test_some_points_draw_no_special_number():
    """A model may want as many images as there are tokens for them: it has to run on something."""
    interface = Interface.of(ir.from_onnx_text(COMPARING))
    assert any(draw(interface, point)["kind"].max() < 4 for point in grid(interface))


@pytest.mark.parametrize("name", ["flag", "causal", "is_decoder", "train", "use_cache"])
@pytest.mark.parametrize("points", [None, POINTS])
def test_a_flag_is_drawn_both_ways_whatever_its_name(name, points):
    interface = Interface.of(inputs_model(("x", 1, ["b", 2, "s", 4]), (name, 9, [1])))
    assert {bool(draw(interface, point)[name][0]) for point in points or grid(interface)} == {False, True}


@pytest.mark.parametrize("sizes", [["b", 2, 4, 4], ["b", 2, 300, 4], [1, 2, "s", 4], [1, 2, 4, 4], [1, 2, 300, 4]])
def test_a_flag_is_drawn_both_ways_whatever_sizes_are_fixed(sizes):
    interface = Interface.of(inputs_model(("x", 1, sizes), ("flag", 9, [])))
    assert {bool(draw(interface, point)["flag"]) for point in grid(interface)} == {False, True}


def test_a_model_that_a_flag_or_a_special_number_changes_is_told_apart():
    """The flag and the number matter at some points at least."""
    text = """<ir_version: 10, opset_import: ["" : 18]>
        g (float[b, s] x, int64[b, s] kind, bool[1] is_decoder) => (float[b, s] y)
        <int64 seven = {7}, float zero = {0}> { BODY }"""
    plain = ir.from_onnx_text(text.replace("BODY", "y = Identity(x)"))
    for body in (
        "image = Equal(kind, seven) y = Where(image, zero, x)",
        "y = Where(is_decoder, x, zero)",
        "off = Not(is_decoder) y = Where(off, x, zero)",
    ):
        original = ir.from_onnx_text(text.replace("BODY", body))
        assert not validate(original, plain).passed
