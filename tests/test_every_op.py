"""Every operator of custom_ops, found by its folder: kernels and function bodies against the reference."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxfuse.custom_ops.case import Case, feed, single_node_model
from onnxfuse.custom_ops.functions import body, folders, part

import onnxfuse


def all_cases(benchmarks: bool) -> list:
    return [
        pytest.param(operator, case, id=f"{operator}-{case}")
        for operator in sorted(folders())
        for case in part(operator, "cases").cases()
        if case.benchmark <= benchmarks
    ]


def expected(operator: str, case: Case) -> tuple[np.ndarray, ...]:
    """The outputs that the node has; the reference gives the optional ones, too."""
    return part(operator, "reference").reference(**case.arrays(), **case.attributes)[: len(case.outputs)]


def check(case: Case, results: list[np.ndarray], want: tuple[np.ndarray, ...]) -> None:
    """Fails unless `results` agree with the reference's."""
    for name, got, value in zip(case.outputs, results, want, strict=True):
        assert got.shape == value.shape, name
        np.testing.assert_allclose(
            got.astype(np.float64), value, rtol=case.relative, atol=case.absolute, err_msg=f"output {name}"
        )


def with_body(operator: str, case: Case, opset: int, shapes: list[tuple[int, ...]]) -> onnx.ModelProto:
    """The model of one node and its function."""
    model = single_node_model(operator, case, opset, shapes)
    for node in model.graph:
        if node.op_type == operator:
            function = body(node, opset)
            node.overload = function.overload
            model.functions[function.identifier()] = function
    return ir.to_proto(model)


@pytest.mark.parametrize(("operator", "case"), all_cases(benchmarks=True))
def test_kernel_agrees_with_the_reference(operator: str, case: Case) -> None:
    session = onnxfuse.session(single_node_model(operator, case, opset=18))
    check(case, session.run(None, feed(case)), expected(operator, case))


@pytest.mark.parametrize("opset", [13, 17, 18, 21, 23])
@pytest.mark.parametrize(("operator", "case"), all_cases(benchmarks=False))
def test_body_agrees_with_the_reference(operator: str, case: Case, opset: int) -> None:
    want = expected(operator, case)
    model = with_body(operator, case, opset, [value.shape for value in want])
    onnx.checker.check_model(model, full_check=True)
    session = onnxfuse.session(model, ops=[])
    check(case, session.run(None, feed(case)), want)
