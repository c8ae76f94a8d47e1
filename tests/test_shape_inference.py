"""Shape inference meets any ranks: what does not fit is refused in words, when loaded or run, and never crashes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import onnxfuse
from onnxfuse.custom_ops.case import single_node_model, widen_edges
from onnxfuse.custom_ops.functions import folders, part

RANKS = range(6)


@pytest.mark.parametrize("operator", sorted(folders()))
def test_inputs_of_any_rank(operator: str) -> None:
    rng = np.random.default_rng(0)
    one = next(case for case in part(operator, "cases").cases() if not case.benchmark)
    refused = 0
    for _ in range(60):
        model = single_node_model(operator, one, 18)
        for value in model.graph.inputs:
            value.shape = ir.Shape([int(size) for size in rng.integers(1, 9, rng.choice(RANKS))])
        widen_edges(model)
        feeds = {v.name: np.ones([int(size) for size in v.shape], v.dtype.numpy()) for v in model.graph.inputs}
        try:
            onnxfuse.session(model).run(None, feeds)
        except Exception as error:  # ONNX Runtime has no class for what custom operators raise
            refused += 1
            assert f"onnxfuse.{operator} (node the_node): " in str(error)
    assert refused > 30  # few of these fit by chance
