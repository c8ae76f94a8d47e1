"""Comparing whole models blames normalising where no fusion is guilty."""

import pytest
from small_models import embedding_model

import onnxfuse
from onnxfuse import api
from onnxfuse.normalise import normalise


@pytest.fixture
def wrong_normalising(monkeypatch):
    """The square root in the norm becomes an exponential."""

    def normalise_wrongly(model):
        for node in model.graph:
            if node.op_type == "Sqrt":
                node.op_type = "Exp"
        return normalise(model)

    monkeypatch.setattr(api, "normalise", normalise_wrongly)


def test_a_wrong_normalising_is_to_blame_where_skipping_every_fusion_does_not_help(wrong_normalising):
    with pytest.raises(onnxfuse.Rejected, match="and without any fusion it does too: a defect in normalising"):
        onnxfuse.optimize(embedding_model(), verify="model")
