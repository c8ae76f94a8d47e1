"""kv_cache="shared": past and present are one buffer, and everything that asked for the past's length asks the mask."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphs import model_of

import onnxfuse
from onnxfuse.errors import UsageError
from onnxfuse.facts import Facts
from onnxfuse.kv_cache import caches, is_shared, share_cache
from onnxfuse.verify.model import validate

TINY = Path(__file__).parent.parent / "examples" / "tiny_llama.onnx"

INPUTS = "float[b,s,16] q, float[b,s,8] k, float[b,s,8] v, {past}, int64[b,t] mask"
PAST = "float[b,2,p,4] past_key, float[b,2,p,4] past_value"
OUTPUTS = "float[b,s,16] y, float[b,2,l,4] key, float[b,2,l,4] value, int64[n] length"
ATTENTION = """
    y, key, value = onnxfuse.Attention<num_heads=4, kv_num_heads=2, causal=1{more}>(q, k, v, past_key, past_value{mask})
"""
LENGTH = "sizes = Shape(past_key) length = Gather(sizes, two)"


def attention(
    body: str = LENGTH, past: str = PAST, mask: str = ", mask", more: str = "", outputs: str = OUTPUTS
) -> ir.Model:
    text = ATTENTION.format(mask=mask, more=more) + body
    return model_of(text, INPUTS.format(past=past), outputs, "int64[1] two = {2}")


def shared(model: ir.Model) -> ir.Model:
    share_cache(model, Facts(model))
    return model


def feed(past: int, new: int, room: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    sizes = {"q": (2, new, 16), "k": (2, new, 8), "v": (2, new, 8)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in sizes.items()}
    for name in ("past_key", "past_value"):
        buffer = np.full((2, 2, room, 4), np.nan, np.float32)  # whoever reads a row that is not written shows it
        buffer[:, :, :past] = rng.standard_normal((2, 2, past, 4))
        arrays[name] = buffer
    mask = np.ones((2, past + new), np.int64)
    mask[1, : past // 2] = 0
    return arrays | {"mask": mask}


@pytest.mark.parametrize("ops", [None, []], ids=("library", "bodies"))
@pytest.mark.parametrize(("past", "new", "room"), [(0, 3, 8), (5, 1, 6), (5, 3, 8), (7, 1, 30)])
def test_the_buffer_holds_what_a_growing_cache_holds(past: int, new: int, room: int, ops: list | None):
    arrays = feed(past, new, room, np.random.default_rng(past))
    grown = arrays | {name: arrays[name][:, :, :past] for name in ("past_key", "past_value")}
    model = attention(body="", outputs=OUTPUTS.rsplit(",", 1)[0])
    want = onnxfuse.session(model).run(None, grown)  # a node without a body runs by the library alone
    got = onnxfuse.session(shared(model), ops=ops).run(None, arrays)
    # sums of 4 products and of up to 8 weighted values, all of size 1 or so
    np.testing.assert_allclose(got[0], want[0], atol=16 * np.finfo(np.float32).eps, rtol=0)
    for present, whole in zip(got[1:], want[1:], strict=True):
        assert present.shape == (2, 2, room, 4)
        np.testing.assert_array_equal(present[:, :, : past + new], whole)


@pytest.mark.parametrize("start", ["", "<start=2, end=3>", "<start=1>"])
def test_who_asks_for_the_pasts_length_gets_the_tokens_not_the_room(start: str):
    index = {"": 2, "<start=2, end=3>": 0, "<start=1>": 1}[start]
    model = attention(body=f"sizes = Shape{start}(past_key) length = Gather(sizes, two)")
    model.graph.initializers["two"].const_value = ir.tensor(np.array([index]))
    session = onnxfuse.session(shared(model))
    for past, new, room in ((5, 3, 20), (0, 1, 4), (6, 1, 7)):
        assert session.run(["length"], feed(past, new, room, np.random.default_rng(0)))[0] == [past]


def test_a_fused_model_is_verified_with_its_buffers(tmp_path):
    result = onnxfuse.optimize(TINY, tmp_path / "fused.onnx", kv_cache="shared", verify="model")
    assert result.report.verification.passed
    model = onnxfuse.optimize(tmp_path / "fused.onnx").model  # as it is read from the file
    assert is_shared(model)
    assert caches(model)["past_key_values.1.value"] == "present.1.value"
    shapes = [value.shape for value in (*model.graph.inputs, *model.graph.outputs) if "." in value.name]
    assert {shape[2].value for shape in shapes} == {"max_sequence_length"}
    assert {node.attributes["shared_cache"].value for node in model.graph if node.op_type == "Attention"} == {1}


def test_sharing_what_is_shared_changes_nothing(tmp_path):
    onnxfuse.optimize(TINY, tmp_path / "once.onnx", kv_cache="shared", verify="none")
    again = onnxfuse.optimize(tmp_path / "once.onnx", tmp_path / "twice.onnx", kv_cache="shared", verify="model")
    assert again.report.verification.passed
    assert (tmp_path / "twice.onnx").read_bytes() == (tmp_path / "once.onnx").read_bytes()


def test_a_wrong_buffer_is_found(tmp_path):
    onnxfuse.optimize(TINY, tmp_path / "fused.onnx", kv_cache="shared", verify="none")
    model = ir.load(tmp_path / "fused.onnx")
    node = next(node for node in model.graph if node.op_type == "Attention")
    node.attributes["causal"] = ir.AttrInt64("causal", 0)
    assert not validate(TINY, model, library=onnxfuse.library_path()).passed


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (attention(mask=""), "has no padding mask"),
        (attention(past=PAST.replace(",p,", ",9,")), "of the fixed length 9"),
        (attention(LENGTH + " z = Neg(past_key)"), "shares its past 'past_key' with Neg"),
        (attention(LENGTH + " z = Neg(key)"), "has a present that Neg"),
        (attention(outputs="float[b,s,16] y, int64[n] length"), "keeps its present to itself"),
        (attention(more=", past_rows=1"), "has a cache of rows"),
        (model_of("y = Neg(x)"), "no fused Attention has a past"),
    ],
    ids=lambda value: "" if isinstance(value, ir.Model) else value,
)
def test_a_cache_that_cannot_be_shared_is_refused_and_told_why(model: ir.Model, message: str):
    with pytest.raises(UsageError, match=message):
        shared(model)


def test_a_merged_decoder_is_told_that_its_attention_is_inside_an_if():
    """As optimum writes it: one branch with a past, one without."""
    call = (
        "{p}y, {p}key, {p}value = onnxfuse.Attention<num_heads=4, kv_num_heads=2>(q, k, v, past_key, past_value, mask)"
    )
    types = "float[b,s,16] {p}y, float[b,2,l,4] {p}key, float[b,2,l,4] {p}value"
    then, other = (f"{p} () => ({types.format(p=p)}) {{ {call.format(p=p)} }}" for p in ("t", "e"))
    body = f"y, key, value = If (c) <then_branch = {then}, else_branch = {other}>"
    model = model_of(body, INPUTS.format(past=PAST) + ", bool c", OUTPUTS.rsplit(",", 1)[0], "int64[1] two = {2}")
    with pytest.raises(UsageError, match="lies inside an If or a loop: export the decoder by itself"):
        shared(model)


def test_the_command_line_shares_it_and_times_it_in_place(tmp_path, capsys):
    from onnxfuse.cli import main

    fused = tmp_path / "fused.onnx"
    assert main(["rewrite", str(TINY), "-o", str(fused), "--kv-cache", "shared"]) == 0
    capsys.readouterr()
    command = ["bench", str(TINY), str(fused), "--prompt", "1", "--past", "5", "--repeat", "1", "--json"]
    assert main(command) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["past"] == 5 and row["fused"] > 0
