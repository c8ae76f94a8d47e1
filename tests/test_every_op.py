"""Every operator of custom_ops, found by its folder: kernels and function bodies against the reference."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest

import onnxfuse
from onnxfuse.custom_ops.body import DOMAIN
from onnxfuse.custom_ops.case import Case, feed, single_node_model, widen_edges
from onnxfuse.custom_ops.functions import attach, body, folders, part

CASES = [
    (operator, case) for operator in sorted(folders()) for case in part(operator, "cases").cases() if not case.benchmark
]
REFUSED = [
    (operator, case, message) for operator in sorted(folders()) for case, message in part(operator, "cases").refused()
]


@functools.cache
def one_case_of_each_body() -> list[tuple[str, Case]]:
    """The first case of every function body that is made of other operators than those before."""
    found, seen = {}, set()
    for operator, case in CASES:
        inputs = (None if spec is None else (str(spec.dtype), len(spec.shape)) for spec in case.inputs.values())
        signature = (operator, *inputs, *case.outputs.values(), *sorted(case.attributes.items()))
        if signature in seen:
            continue
        seen.add(signature)
        function = body(single_node_model(operator, case, 18).graph[0], 18)
        found.setdefault((operator, *(node.op_type for node in function)), (operator, case))
    return list(found.values())


def expected(operator: str, case: Case) -> tuple[np.ndarray, ...]:
    """The outputs that the node has; the reference gives the optional ones, too."""
    return case.of_node(part(operator, "reference").reference(**case.arrays(), **case.attributes))


def check(case: Case, results: list[np.ndarray], want: tuple[np.ndarray, ...], *, more: float = 0.0) -> None:
    """Fails unless `results` agree with the reference's up to the case's tolerance, and absolutely by `more`."""
    absolute = case.absolute + more
    for name, got, value in zip(case.made, results, want, strict=True):
        assert got.shape == value.shape, name
        np.testing.assert_allclose(
            got.astype(np.float64), value, rtol=case.relative, atol=absolute, err_msg=f"output {name}"
        )


def kernel_model(operator: str, case: Case) -> ir.Model:
    """The model of one node without a function, so that only the kernel can run it."""
    model = single_node_model(operator, case, opset=18)
    widen_edges(model)
    return model


def body_model(operator: str, case: Case, opset: int, want: tuple[np.ndarray, ...]) -> onnx.ModelProto:
    """The model of one node and its function."""
    model = single_node_model(operator, case, opset, [value.shape for value in want])
    attach(model.graph[0], model)
    widen_edges(model)
    return ir.to_proto(model)


@pytest.mark.parametrize(("operator", "case"), CASES, ids=str)
def test_kernel_agrees_with_the_reference(operator: str, case: Case) -> None:
    results = onnxfuse.session(kernel_model(operator, case)).run(None, feed(case))
    check(case, results, expected(operator, case))


def model_of_all(operator: str, cases: list[Case]) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """One model with a node for each case, and its inputs."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18, DOMAIN: 1}, name="all")
    inputs = {}
    for i, case in enumerate(cases):
        part_graph = kernel_model(operator, case).graph
        for value in (*part_graph.inputs, *(value for node in part_graph for value in node.outputs)):
            value.name = value.name and f"{value.name}_{i}"  # an absent output has none
        for node in part_graph:
            node.name = f"{node.name}_{i}"
        starts, ends, nodes = list(part_graph.inputs), list(part_graph.outputs), list(part_graph)
        part_graph.inputs.clear()
        part_graph.outputs.clear()
        part_graph.remove(nodes)
        graph.inputs.extend(starts)
        graph.outputs.extend(ends)
        graph.extend(nodes)
        inputs |= {f"{name}_{i}": array for name, array in feed(case).items()}
    return ir.Model(graph, ir_version=10), inputs


@pytest.mark.parametrize("operator", sorted(folders()))
def test_kernels_agree_when_all_cases_are_one_model(operator: str) -> None:
    cases = [case for name, case in CASES if name == operator]
    model, inputs = model_of_all(operator, cases)
    results = iter(onnxfuse.session(model).run(None, inputs))
    for case in cases:
        check(case, [next(results) for _ in case.made], expected(operator, case))


@pytest.mark.parametrize(("operator", "case"), CASES, ids=str)
def test_body_agrees_with_the_reference(operator: str, case: Case) -> None:
    want = expected(operator, case)
    model = body_model(operator, case, 18, want)
    check(case, onnxfuse.session(model, ops=[]).run(None, feed(case)), want, more=case.body_absolute)


@pytest.mark.parametrize("opset", [13, 17, 21, 23])
@pytest.mark.parametrize(("operator", "case"), one_case_of_each_body(), ids=str)
def test_body_is_valid_at_every_opset(operator: str, case: Case, opset: int) -> None:
    want = expected(operator, case)
    model = body_model(operator, case, opset, want)
    onnx.checker.check_model(model, full_check=True)
    check(case, onnxfuse.session(model, ops=[]).run(None, feed(case)), want, more=case.body_absolute)


@pytest.mark.parametrize(("operator", "case"), one_case_of_each_body(), ids=str)
def test_body_agrees_with_the_reference_in_the_onnx_evaluator(operator: str, case: Case) -> None:
    want = expected(operator, case)
    model = body_model(operator, case, 18, want)
    check(case, onnx.reference.ReferenceEvaluator(model).run(None, feed(case)), want, more=case.body_absolute)


@pytest.mark.parametrize(("operator", "case", "message"), REFUSED, ids=str)
def test_kernel_refuses_bad_input(operator: str, case: Case, message: str) -> None:
    with pytest.raises(Exception) as error:  # ONNX Runtime has no class for what custom operators raise
        onnxfuse.session(kernel_model(operator, case)).run(None, feed(case))
    assert f"onnxfuse.{operator} (node the_node): " in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("target", ["scalar", "avx2", "avx512", "avx512_bf16", "amx"])
def test_kernels_of_every_simd_target(target: str) -> None:
    """Runs all cases in a process that is told to use `target`."""
    environment = {**os.environ, "ONNXFUSE_SIMD": target}
    probe = [sys.executable, "-P", "-c", "import onnxfuse; onnxfuse.session_options()"]
    probed = subprocess.run(probe, env=environment, capture_output=True, text=True, check=False)
    if "this machine only has" in probed.stderr:
        pytest.skip(f"this machine has no {target}")
    assert probed.returncode == 0, probed.stderr
    tests = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "one_model", __file__]
    run = subprocess.run(tests, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


def test_an_unknown_simd_target_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXFUSE_SIMD", "sse9")
    probe = [sys.executable, "-P", "-c", "import onnxfuse; onnxfuse.session_options()"]
    run = subprocess.run(probe, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "ONNXFUSE_SIMD is 'sse9', expected scalar, avx2, avx512, avx512_bf16 or amx" in run.stderr
