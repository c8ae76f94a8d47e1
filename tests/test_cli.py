"""The commands: what they write, print and return; and one clear line for every mistake."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from small_models import embedding_model, padded_model, written, written_outside

import onnxfuse
from onnxfuse import cli, runtime, soundness
from onnxfuse.errors import UsageError
from onnxfuse.report import OutputCheck, Verification
from onnxfuse.verify.bisect import guilty


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """Status, standard output and standard error of a command."""
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def model(tmp_path) -> Path:
    return written(embedding_model(), tmp_path)


def test_rewrite_writes_a_verified_model_and_its_report(capsys, tmp_path, model):
    fused, report = tmp_path / "fused.onnx", tmp_path / "report.json"
    status, out, err = run(capsys, "rewrite", model, "-o", fused, "--verify", "model", "--report", report)
    assert (status, err) == (0, "")
    assert "verification (model): passed" in out and "\x1b" not in out
    proto = onnx.load(fused)
    onnx.checker.check_model(proto, full_check=True)
    assert [node.op_type for node in proto.graph.node] == ["Gather", "RMSNorm", "MatMul"]
    assert [(f.domain, f.name) for f in proto.functions] == [("onnxfuse", "RMSNorm")]
    assert {entry.domain: entry.version for entry in proto.opset_import} == {"": 17, "onnxfuse": 1}
    assert proto.ir_version >= 10
    data = json.loads(report.read_text())
    assert data["model"] == str(model) and data["output"] == str(fused) and data["target"] == "cpu"
    assert data["fused"] == {"RMSNorm": 1} and data["nodes"] == {"before": 8, "after": 3}
    assert data["verification"]["passed"] and data["verification"]["outputs"][0]["name"] == "logits"
    assert set(data["seconds"]) == {"load", "normalise", "rewrite", "tidy", "check", "verify", "write"}


def test_the_interface_is_kept_to_the_letter(capsys, tmp_path, model):
    run(capsys, "rewrite", model, "-o", tmp_path / "fused.onnx")
    before, after = onnx.load(model).graph, onnx.load(tmp_path / "fused.onnx").graph
    assert before.input == after.input and before.output == after.output


def test_fused_nodes_state_their_origin_and_their_outputs_type(capsys, tmp_path, model):
    run(capsys, "rewrite", model, "-o", tmp_path / "fused.onnx")
    graph = onnx.load(tmp_path / "fused.onnx").graph
    (node,) = [node for node in graph.node if node.domain == "onnxfuse"]
    metadata = {entry.key: entry.value for entry in node.metadata_props}
    assert metadata["onnxfuse.fusion"] == "rms_norm" and "divide" in metadata["onnxfuse.replaced"]
    (info,) = [info for info in graph.value_info if info.name == node.output[0]]
    assert info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [d.dim_value or d.dim_param for d in info.type.tensor_type.shape.dim][-1] == 8


def test_rewriting_twice_changes_nothing_the_second_time(capsys, tmp_path, model):
    once, twice, again = (tmp_path / name for name in ("once.onnx", "twice.onnx", "again.onnx"))
    run(capsys, "rewrite", model, "-o", once)
    run(capsys, "rewrite", once, "-o", twice)
    run(capsys, "rewrite", model, "-o", again)
    assert once.read_bytes() == twice.read_bytes() == again.read_bytes()


def test_a_dry_run_writes_nothing(capsys, tmp_path, model):
    status, out, _ = run(capsys, "rewrite", model, "--dry-run")
    assert status == 0 and "RMSNorm" in out and names(tmp_path) == ["model.onnx"]


def test_skipped_fusions_are_not_applied(capsys, tmp_path, model):
    status, out, _ = run(capsys, "rewrite", model, "-o", tmp_path / "out.onnx", "--skip", "rms_norm")
    assert status == 0 and "nothing fused" in out
    assert onnxfuse.optimize(model, fusions=["swiglu"]).report.fused == {}


def test_a_required_fusion_that_is_absent_fails_and_writes_only_the_report(capsys, tmp_path, model):
    report = tmp_path / "report.json"
    options = ("-o", tmp_path / "out.onnx", "--require", "rms_norm,swiglu", "--report", report)
    status, _, err = run(capsys, "rewrite", model, *options)
    assert status == 1
    assert err == "onnxfuse: required and not found in the model: swiglu; nothing was written\n"
    assert names(tmp_path) == ["model.onnx", "report.json"]
    assert run(capsys, "rewrite", model, "-o", tmp_path / "out.onnx", "--require", "rms_norm")[0] == 0


def test_a_model_that_differs_is_not_written_and_its_fusion_named(capsys, tmp_path, model, monkeypatch):
    def differs_if_fused(original, fused, **options):
        is_fused = any(node.domain == "onnxfuse" for node in fused.graph)
        return Verification("model", not is_fused, (OutputCheck("logits", 1.0, 1.0, 2e-3, not is_fused),))

    monkeypatch.setattr("onnxfuse.api.validate", differs_if_fused)
    report = tmp_path / "report.json"
    status, out, err = run(
        capsys, "rewrite", model, "-o", tmp_path / "out.onnx", "--verify", "model", "--report", report
    )
    assert status == 1 and "--skip rms_norm" in err and "the difference comes from rms_norm" in out
    assert names(tmp_path) == ["model.onnx", "report.json"]
    assert json.loads(report.read_text())["verification"]["guilty"] == ["rms_norm"]


def two_constant_ifs() -> onnx.ModelProto:
    """y = (x + 1) + (x + 10): the branches of both Ifs call their weights the same."""

    def branch(name: str, out: str, number: float) -> onnx.GraphProto:
        add = onnx.helper.make_node("Add", ["x", "w"], [out])
        info = onnx.helper.make_tensor_value_info(out, 1, [2])
        return onnx.helper.make_graph([add], name, [], [info], [numpy_helper.from_array(np.full(2, number, "f"), "w")])

    nodes = [
        onnx.helper.make_node("If", ["c"], ["a"], then_branch=branch("t", "t1", 1), else_branch=branch("e", "e1", 2)),
        onnx.helper.make_node("If", ["c"], ["b"], then_branch=branch("t", "t2", 10), else_branch=branch("e", "e2", 20)),
        onnx.helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [2]) for name in "xy")
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(np.array(True), "c")])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


GIVEN = {
    "embedding": embedding_model,
    "tiny Llama": lambda: onnx.load(Path(__file__).parent.parent / "examples" / "tiny_llama.onnx"),
    "Ifs": two_constant_ifs,
}


@pytest.mark.parametrize("options", [{"verify": "none"}, {"verify": "model"}, {"verify": "model", "weights": "int8"}])
@pytest.mark.parametrize("name", GIVEN)
def test_optimize_leaves_its_argument_alone(name, options):
    if "weights" in options and name == "Ifs":
        pytest.skip("int8 rounds matrices, and two constant Ifs have none")
    proto, given = GIVEN[name](), ir.from_proto(GIVEN[name]())
    before, written = GIVEN[name](), ir.to_proto(given)
    for source in (proto, given):
        result = onnxfuse.optimize(source, **options)
        assert result.model is not source and result.report.nodes_after < result.report.nodes_before
        ir.to_proto(result.model)  # gives tensors the names that they have there
    assert proto == before and ir.to_proto(given) == written


def test_the_standard_domain_by_its_other_name(capsys, tmp_path):
    """Opset 18 was taken for opset 1 then, where the axes of Unsqueeze are an attribute."""
    text = """<ir_version: 8, opset_import: ["ai.onnx" : 18]> g (float[2,8] x, float[8] u) => (float[2,8] y)
        <float[8] k = {1,2,3,4,5,6,7,8}, int64[1] axis = {0}> {
        c = Unsqueeze(k, axis)  z = Mul(x, c)  s = Sigmoid(z)  g = Mul(s, z)  y = Mul(g, z) }"""
    path = written(onnx.parser.parse_model(text), tmp_path)
    status, out, _ = run(capsys, "rewrite", path, "-o", tmp_path / "fused.onnx", "--verify", "model")
    assert status == 0 and "SwiGLU" in out
    assert {entry.domain for entry in onnx.load(tmp_path / "fused.onnx").opset_import} == {"", "onnxfuse"}
    assert onnxfuse.optimize(ir.load(path), verify="model").report.fused == {"SwiGLU": 1}


BAD_OPTIONS = [
    (["--skip", "rms_nrom"], "there is no fusion 'rms_nrom': did you mean rms_norm?"),
    (["--fusions", "zzz"], "there is no fusion 'zzz': known are"),
    (["--require", "zzz"], "there is no fusion 'zzz': known are"),
    (["--target", "tpu"], "invalid choice: 'tpu'"),
    (["--verify", "all"], "invalid choice: 'all'"),
    (["--level", "layer"], "invalid choice: 'layer'"),
    (["--weights", "link"], "invalid choice: 'link'"),
    (["--report", "missing/report.json"], "the folder missing does not exist"),
    (["--require", "norm_gated_mlp"], "norm_gated_mlp: only applied at level 'block', and the level is 'op'"),
    (["--require", "attention", "--skip", "attention"], "attention is required, and left out by the choice of fusions"),
    (["--require", "attention", "--fusions", "rms_norm"], "attention is required, and left out"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_an_impossible_option_is_refused_and_nothing_written(capsys, tmp_path, model, options, message):
    status, _, err = run(capsys, "rewrite", model, "-o", tmp_path / "out.onnx", *options)
    assert status == 2 and message in err and "Traceback" not in err
    assert names(tmp_path) == ["model.onnx"]


@pytest.mark.parametrize("name", ["model.onnx", "weights.bin", "out.onnx", "out.onnx.data", "folder"])
def test_a_report_takes_the_place_of_no_model(capsys, tmp_path, name):
    model = written_outside(embedding_model(), tmp_path)
    (tmp_path / "folder").mkdir()
    before = names(tmp_path), model.read_bytes(), (tmp_path / "weights.bin").read_bytes()
    status, _, err = run(capsys, "rewrite", model, "-o", tmp_path / "out.onnx", "--report", tmp_path / name)
    assert status == 2 and name in err and err.count("\n") == 1
    assert before == (names(tmp_path), model.read_bytes(), (tmp_path / "weights.bin").read_bytes())


def test_a_report_is_written_whole_over_an_old_one_or_to_a_pipe(capsys, tmp_path, model):
    report, pipe = tmp_path / "report.json", tmp_path / "pipe"
    report.write_text("x" * 100_000)
    assert run(capsys, "rewrite", model, "--dry-run", "--report", report)[0] == 0
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert run(capsys, "rewrite", model, "--dry-run", "--report", pipe)[0] == 0
    told = json.loads(report.read_text()), json.loads(os.read(reader, 1 << 20))
    os.close(reader)
    assert told[0]["fused"] == told[1]["fused"] == {"RMSNorm": 1}
    assert names(tmp_path) == ["model.onnx", "pipe", "report.json"]


def test_a_report_that_cannot_be_finished_leaves_the_old_one(capsys, tmp_path, model, monkeypatch):
    report = tmp_path / "report.json"
    report.write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    status, _, err = run(capsys, "rewrite", model, "--dry-run", "--report", report)
    assert status == 2 and "No space left on device" in err
    assert report.read_text() == "old" and names(tmp_path) == ["model.onnx", "report.json"]


def test_one_fusion_may_be_given_by_itself(model):
    assert onnxfuse.optimize(model, fusions="rms_norm", require="rms_norm").report.fused == {"RMSNorm": 1}
    (rms_norm,) = onnxfuse.api.choose("rms_norm")
    assert onnxfuse.optimize(model, skip=rms_norm).report.fused == {}
    with pytest.raises(UsageError, match="there is no fusion 'rms_nrom'"):
        onnxfuse.optimize(model, fusions="rms_nrom")


def test_for_cuda_it_is_told_that_its_kernels_did_not_run(capsys, tmp_path, model):
    status, out, _ = run(capsys, "rewrite", model, "-o", tmp_path / "out.onnx", "--target", "cuda")
    assert status == 0 and "CUDA kernels were not run" in out and "validate --provider cuda" in out


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
@pytest.mark.parametrize("command", ["validate", "bench"])
def test_both_providers_get_the_library_if_it_has_kernels_for_them(capsys, model, monkeypatch, command, provider):
    taken = []

    def called(*models, library, provider, **options):
        taken.append((library, provider))
        return Verification("model", True) if command == "validate" else []

    monkeypatch.setattr(cli, command, called)
    both = {"CPUExecutionProvider": frozenset({"RMSNorm"}), "CUDAExecutionProvider": frozenset({"RMSNorm"})}
    monkeypatch.setattr(runtime, "kernels", lambda: both)
    assert run(capsys, command, model, model, "--provider", provider, "--json")[::2] == (0, "")
    monkeypatch.setattr(runtime, "kernels", dict)
    status, _, err = run(capsys, command, model, model, "--provider", provider, "--json")
    assert status == 0 and ("timed as function bodies" in err) == (command == "bench")
    assert taken == [(onnxfuse.library_path(), provider), (None, provider)]


def text_file(folder: Path) -> Path:
    (folder / "model.onnx").write_text("not a model\n" * 100)
    return folder / "model.onnx"


def truncated(folder: Path) -> Path:
    path = written(embedding_model(), folder)
    os.truncate(path, path.stat().st_size // 2)
    return path


def without_its_weights(folder: Path) -> Path:
    path = written_outside(embedding_model(), folder)
    (folder / "weights.bin").unlink()
    return path


def escaping(folder: Path) -> Path:
    path = written_outside(embedding_model(), folder)
    path.write_bytes(path.read_bytes().replace(b"weights.bin", b"../secret.b"))
    return path


BAD_MODELS = [
    (text_file, "is not an ONNX model"),
    (truncated, "is cut short or damaged"),
    (without_its_weights, "weights.bin is missing"),
    (escaping, "points outside the model's folder"),
    (lambda folder: folder / "nothing.onnx", "does not exist"),
    (lambda folder: folder, "is a folder"),
]


@pytest.mark.parametrize("command", ["rewrite", "explain", "validate", "bench", "view"])
@pytest.mark.parametrize(("make", "message"), BAD_MODELS)
def test_an_unreadable_model_gets_one_line_and_status_2(capsys, tmp_path, command, make, message):
    path = make(tmp_path)
    before = names(tmp_path)
    rest = {"rewrite": ["-o", tmp_path / "out.onnx"], "validate": [path], "bench": [path]}.get(command, [])
    status, out, err = run(capsys, command, path, *rest)
    assert (status, out) == (2, "")
    assert err.startswith("onnxfuse: ") and message in err and err.count("\n") == 1
    assert names(tmp_path) == before


def test_output_in_a_missing_folder_and_over_the_input_are_refused(capsys, tmp_path, model):
    before = model.read_bytes()
    status, _, err = run(capsys, "rewrite", model, "-o", tmp_path / "missing" / "out.onnx")
    assert status == 2 and "missing does not exist" in err and err.count("\n") == 1
    status, _, err = run(capsys, "rewrite", model, "-o", model)
    assert status == 2 and "is the input model" in err
    assert model.read_bytes() == before and names(tmp_path) == ["model.onnx"]


def test_without_a_runtime_the_extra_to_install_is_named(capsys, tmp_path, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    status, _, err = run(capsys, "rewrite", model, "-o", tmp_path / "out.onnx")
    assert status == 2 and "onnxfuse[cpu]" in err and names(tmp_path) == ["model.onnx"]
    assert run(capsys, "rewrite", model, "-o", tmp_path / "out.onnx", "--verify", "none")[0] == 0


def test_an_output_is_needed(capsys, model):
    status, _, err = run(capsys, "rewrite", model)
    assert status == 2 and "-o OUT" in err


def test_a_model_that_never_runs_is_called_broken_not_the_rewrite(capsys, tmp_path, monkeypatch):
    """An export without shapes passes the checker; the shapes that the rewrite finds out bring its fault to light."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[b,8] x, int64[2] shape) => (float[u,v] y)
        <float[7] seven = {1,2,3,4,5,6,7}> { rows = Reshape(x, shape) y = Add(rows, seven) }"""
    path = written(onnx.parser.parse_model(text), tmp_path)
    complaints = iter(("Add: 8 and 7", None))
    monkeypatch.setattr(soundness, "checker_complaint", lambda model: next(complaints))
    status, _, error = run(capsys, "rewrite", path, "-o", tmp_path / "fused.onnx")
    assert status == 2 and names(tmp_path) == [path.name]
    assert error.startswith("onnxfuse: the model contradicts itself: Add: 8 and 7; the original model runs on none")


def test_an_internal_error_is_one_line_unless_debugged(capsys, tmp_path, model, monkeypatch):
    def broken(*arguments, **options):
        raise KeyError("oops")

    monkeypatch.setattr("onnxfuse.api.normalise", broken)
    status, _, err = run(capsys, "rewrite", model, "-o", tmp_path / "out.onnx")
    assert status == 2 and "internal error, KeyError" in err and err.count("\n") == 1
    with pytest.raises(KeyError):
        run(capsys, "rewrite", model, "-o", tmp_path / "out.onnx", "--debug")


def test_explain_counts_every_fusion_and_filters_places(capsys, model):
    status, out, _ = run(capsys, "explain", model)
    lines = out.splitlines()
    assert status == 0
    assert any(line.startswith("rms_norm ") and "1 fused" in line and "rms_norm.py" in line for line in lines)
    assert any(line.startswith("swiglu ") and "never matched" in line for line in lines)
    assert not any(line.startswith("norm_projection ") for line in lines)
    assert "only applied at level 'block'" in run(capsys, "explain", model, "--fusion", "norm_projection")[2]
    _, out, _ = run(capsys, "explain", model, "--fusion", "norm_projection", "--level", "block")
    assert out.startswith("norm_projection ") and "1 fused" in out
    status, out, _ = run(capsys, "explain", model, "--fusion", "rms_norm", "--node", "RMSNorm*", "--json")
    (entry,) = json.loads(out)
    assert status == 0 and entry["fused"] == 1 and entry["events"][0]["outcome"] == "fused"
    assert "nothing was fused" in run(capsys, "explain", model, "--node", "no such node")[1]
    assert run(capsys, "explain", model, "--fusion", "rms")[0] == 2


def test_validate_passes_on_equal_models_and_fails_on_different_ones(capsys, tmp_path, model):
    other = written(embedding_model(scale=1.01), tmp_path, "other.onnx")
    status, out, _ = run(capsys, "validate", model, model)
    assert status == 0 and "passed" in out
    status, out, _ = run(capsys, "validate", model, other)
    assert status == 1 and "FAILED" in out and "DIFFERS" in out and "logits" in out
    status, out, _ = run(capsys, "validate", model, other, "--tolerance", "0.05", "--json")
    assert status == 0 and json.loads(out)["passed"] is True
    assert run(capsys, "validate", model, other, "--tolerance", "-1")[0] == 2


def test_validate_compares_padded_batches_on_visible_tokens(capsys, tmp_path):
    original = written(padded_model(), tmp_path)
    leaking = written(padded_model(leak=1.0), tmp_path, "leaking.onnx")
    assert run(capsys, "validate", original, leaking)[0] == 0


def test_bench_times_both_models_and_prints_rows(capsys, tmp_path, model):
    fused = tmp_path / "fused.onnx"
    run(capsys, "rewrite", model, "-o", fused)
    status, out, _ = run(capsys, "bench", model, fused, "--prompt", "1,8", "--past", "0", "--repeat", "3", "--json")
    rows = json.loads(out)
    assert status == 0 and [(row["prompt"], row["past"]) for row in rows] == [(1, 0), (8, 0)]
    for row in rows:
        assert row["repeats"] == 3 and 0 < row["fused_min"] <= row["fused"]
        assert row["ratio"] == pytest.approx(row["original"] / row["fused"])
    status, out, _ = run(capsys, "bench", model, fused, "--prompt", "2", "--past", "0", "--repeat", "3")
    assert status == 0 and "tokens/s" in out
    for wrong in (["--prompt", "zero"], ["--prompt", "0"], ["--past", "-1"], ["--batch", "0"], ["--threads", "-1"]):
        assert run(capsys, "bench", model, fused, *wrong)[0] == 2


def test_view_serves_the_model_with_netron(capsys, model, monkeypatch):
    netron = pytest.importorskip("netron")
    served = []
    monkeypatch.setattr(netron, "start", lambda path, address: served.append((path, address)))
    monkeypatch.setattr(netron, "wait", lambda: served.append("waited"))
    monkeypatch.setattr(netron, "stop", lambda: served.append("stopped"))
    assert run(capsys, "view", model, "--port", 8099)[0] == 0
    assert served == [(str(model), ("localhost", 8099)), "waited", "stopped"]


def test_list_shows_fusions_operators_and_their_documentation(capsys):
    status, out, _ = run(capsys, "list")
    assert status == 0 and "rms_norm" in out and "RMSNorm" in out
    lines = out.splitlines()
    (told,) = [line for line in lines if line.startswith("  skip_norm_projection ")]
    assert "nobody else wants: lm_head." in told
    (longest,) = [line.split() for line in lines if line.startswith("  microsoft_attention_with_cache")]
    assert longest[:3] == ["microsoft_attention_with_cache", "attention", "Attention"]
    assert "mean" in run(capsys, "list", "rms_norm")[1]
    assert "sqrt" in run(capsys, "list", "RMSNorm")[1]
    assert run(capsys, "list", "nothing")[0] == 2


def test_the_version_is_told(capsys):
    assert run(capsys, "--version")[:2] == (0, f"onnxfuse {onnxfuse.__version__}\n")
    assert onnxfuse.__version__ == importlib.metadata.version("onnxfuse")


@pytest.mark.parametrize("command", ["rewrite", "explain", "validate", "bench", "view", "list"])
def test_every_command_explains_itself(capsys, command):
    status, out, _ = run(capsys, command, "--help")
    assert status == 0 and "usage: onnxfuse" in out and "--debug" in out


def test_the_package_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", "onnxfuse", "list"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert "gated_mlp" in told


def test_the_guilty_fusions_are_a_smallest_set():
    def needs(*bad: str):
        return lambda skipped: set(bad) <= skipped

    fusions = [f"f{index}" for index in range(9)]
    assert guilty(fusions, needs("f3")) == ["f3"]
    assert sorted(guilty(fusions, needs("f1", "f7"))) == ["f1", "f7"]
    assert sorted(guilty(fusions, needs(*fusions))) == fusions
    assert guilty(fusions, lambda skipped: False) == []


def test_a_fused_model_runs_with_and_without_the_library(tmp_path, model):
    pytest.importorskip("onnxruntime")
    import onnxruntime

    onnxfuse.optimize(model, tmp_path / "fused.onnx")
    feed = {"input_ids": np.array([[1, 2, 3]])}
    expected = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feed)[0]
    plain = onnxruntime.InferenceSession(tmp_path / "fused.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(plain.run(None, feed)[0], expected, rtol=1e-5, atol=1e-6)  # ten float32 roundings
    kernel = onnxfuse.session(tmp_path / "fused.onnx").run(None, feed)[0]
    np.testing.assert_allclose(kernel, expected, rtol=1e-5, atol=1e-6)


def test_a_model_of_an_opset_before_the_function_bodies_is_refused(capsys, tmp_path):
    old = tmp_path / "old.onnx"
    model = embedding_model()
    model.opset_import[0].version = 11
    old.write_bytes(model.SerializeToString())
    status, _, error = run(capsys, "rewrite", old, "-o", tmp_path / "fused.onnx")
    assert status == 2
    assert "ai.onnx opset 11, expected 13 or newer" in error
    assert not (tmp_path / "fused.onnx").exists()
