"""What normalising does is compared with the original too, and nothing is called verified that was not compared."""

import onnx
import pytest
from graphs import model_of
from small_models import embedding_model

import onnxfuse
from onnxfuse import api
from onnxfuse.cli import main
from onnxfuse.normalise import normalise
from onnxfuse.verify import normalised


@pytest.fixture
def wrong_normalising(monkeypatch):
    """The square root in the norm becomes a logarithm of one plus it, or the like."""

    def normalise_wrongly(model):
        for node in model.graph:
            if node.op_type == "Sqrt":
                node.op_type = "Exp"
        return normalise(model)

    monkeypatch.setattr(api, "normalise", normalise_wrongly)


def test_a_wrong_normalising_is_found_without_comparing_whole_models(wrong_normalising):
    with pytest.raises(onnxfuse.Rejected, match="normalising changed what the model computes: a defect") as caught:
        onnxfuse.optimize(embedding_model())
    verification = caught.value.report.verification
    assert verification.mode == "match" and verification.passed is False
    assert [check.name for check in verification.outputs if not check.passed] == ["logits"]


def test_a_wrong_normalising_is_to_blame_where_skipping_every_fusion_does_not_help(wrong_normalising):
    with pytest.raises(onnxfuse.Rejected, match="and without any fusion it does too: a defect in normalising"):
        onnxfuse.optimize(embedding_model(), verify="model")


def test_a_right_normalising_says_how_near_it_is():
    verification = onnxfuse.optimize(embedding_model()).report.verification
    assert verification.passed and not verification.outputs
    assert verification.notes[0].startswith("normalising alone moves no output by more than ")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = my.Sample(x)", "ONNX Runtime cannot load the model"),
        ("y = Dropout(x, half, yes)", "Dropout draws random numbers"),
        ("n = Neg(x) y = Reshape(n, sizes)", "the original model runs on none of the generated inputs"),
    ],
)
def test_what_was_not_compared_is_not_called_verified(body, reason):
    constants = "float half = {0.5}, bool yes = {1}, int64[2] sizes = {5, 5}"
    model = model_of(body, "float[4] x", "float[N] y" if "Reshape" not in body else "float[M,N] y", constants)
    model.opset_imports["my"] = 1
    verification = onnxfuse.optimize(model).report.verification
    assert verification.passed is None
    assert verification.notes[0].startswith(f"normalising was not compared with the original: {reason}")


def test_a_large_model_is_compared_match_by_match_only(monkeypatch):
    monkeypatch.setattr(normalised, "LARGEST", 100)
    verification = onnxfuse.optimize(embedding_model()).report.verification
    assert verification.passed and "GiB of weights; --verify model compares it" in verification.notes[0]
    assert onnxfuse.optimize(embedding_model(), fusions=()).report.verification.passed is None


def test_people_read_that_nothing_was_verified(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(normalised, "LARGEST", 100)
    onnx.save(embedding_model(), tmp_path / "m.onnx")
    assert main(["rewrite", str(tmp_path / "m.onnx"), "--dry-run", "--skip", "rms_norm"]) == 0
    out = capsys.readouterr().out
    assert "not verified" in out and "passed" not in out
