"""The report is data in the documented shape; its text says the same."""

from __future__ import annotations

import io
import json
import math

import onnx
import onnx_ir as ir
from rich.console import Console
from small_models import embedding_model

from onnxfuse.explain import NearMiss, Refused
from onnxfuse.report import OutputCheck, Report, Verification, fused_count, node_count

MISS = NearMiss(
    fusion="attention",
    node="/attn/MatMul",
    matched=9,
    wanted=10,
    where="attention.py:30",
    source="weights = op.Softmax(scores, axis=-1)",
    at="Softmax '/attn/Softmax'",
    what="Softmax.axis",
    expected="-1",
    found="1",
    tried=[("MatMul(weights, v)", "Mul: expected MatMul, found Mul")],
)


def example() -> Report:
    return Report(
        model="model.onnx",
        output="fused.onnx",
        target="cpu",
        nodes_before=120,
        nodes_after=30,
        fused={"RMSNorm": 5, "Attention": 2},
        refused=[Refused("rms_norm", "/norm/Mul", "weight is float32, x is float16", "rms_norm.py:28")] * 2,
        near_misses=[MISS],
        verification=Verification(
            "model",
            False,
            (OutputCheck("logits", 0.5, 0.25, 2e-3, False, (0, 1, 2), "batch=1 length=4 past=0", 100),),
            ("a note",),
            ("attention",),
        ),
        seconds={"load": 0.12345, "rewrite": 1.0},
    )


def text_of(report: Report, *, verbose: bool = False, width: int = 160) -> str:
    stream = io.StringIO()
    report.print(Console(file=stream, width=width, force_terminal=False), verbose=verbose)
    return stream.getvalue()


def test_json_has_the_documented_keys():
    data = json.loads(example().to_json())
    assert list(data) == [
        *("model", "output", "target", "nodes", "fused", "refused", "near_misses", "verification", "seconds")
    ]
    assert data["nodes"] == {"before": 120, "after": 30}
    assert data["fused"] == {"Attention": 2, "RMSNorm": 5}
    assert data["refused"][0] == {
        "fusion": "rms_norm",
        "node": "/norm/Mul",
        "reason": "weight is float32, x is float16",
        "where": "rms_norm.py:28",
    }
    assert data["near_misses"][0]["expected"] == "-1"
    assert data["verification"]["outputs"][0]["max_rel"] == 0.25
    assert data["seconds"] == {"load": 0.123, "rewrite": 1.0}


def test_json_has_no_infinities():
    report = example()
    report.verification = Verification("model", False, (OutputCheck("y", math.inf, math.nan, 1e-3, False),))
    (check,) = json.loads(report.to_json())["verification"]["outputs"]
    assert check["max_abs"] is None and check["max_rel"] is None and check["passed"] is False


def test_text_names_counts_refusals_and_the_failing_output():
    text = text_of(example())
    for part in (
        "model.onnx -> fused.onnx",
        "120 -> 30 nodes",
        "RMSNorm",
        "refused rms_norm x2: weight is float32, x is float16",
        "1 near miss;",
        "verification (model): FAILED",
        "DIFFERS",
        "[0, 1, 2] of batch=1 length=4 past=0",
        "the difference comes from attention",
        "note: a note",
    ):
        assert part in text


def test_verbose_text_lists_each_place():
    text = text_of(example(), verbose=True)
    assert text.count("refused rms_norm at /norm/Mul") == 2
    for part in (
        "near miss attention at /attn/MatMul: 9 of 10 operators matched",
        "attention.py:30  weights = op.Softmax(scores, axis=-1)",
        "Softmax.axis: expected -1, found 1",
        "at Softmax '/attn/Softmax'",
        "tried MatMul(weights, v)  Mul: expected MatMul, found Mul",
    ):
        assert part in text


def test_text_that_is_not_for_a_terminal_has_no_escapes():
    assert "\x1b" not in text_of(example())


def test_brackets_in_names_are_printed_as_they_are():
    report = example()
    report.refused = [Refused("rms_norm", "node[bold]", "found [2, 3]", "")]
    assert "refused rms_norm at node[bold]" in text_of(report, verbose=True)


def test_counts_look_into_subgraphs_and_leave_out_constants_and_bodies():
    def fused(name: str) -> onnx.NodeProto:
        return onnx.helper.make_node("RMSNorm", [name, "gain"], [name + "_normed"], domain="onnxfuse")

    proto = embedding_model()
    constant = onnx.helper.make_node("Constant", [], ["unused"], value_float=1.0)
    info = onnx.helper.make_tensor_value_info("x_normed", 1, None)
    branch = onnx.helper.make_graph([fused("x")], "branch", [], [info])
    proto.graph.node.extend(
        [constant, onnx.helper.make_node("If", ["cond"], ["chosen"], then_branch=branch, else_branch=branch)]
    )
    proto.graph.input.append(onnx.helper.make_tensor_value_info("cond", 9, []))
    body = onnx.helper.make_function("onnxfuse", "Block", ["x"], ["x_normed"], [fused("x")], [])
    proto.functions.append(body)
    model = ir.from_proto(proto)
    assert fused_count(model) == {"RMSNorm": 2}
    assert node_count(model) == 8 + 1 + 2
