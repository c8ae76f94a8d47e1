"""The CUDA kernels of every operator against the float64 reference. Needs a GPU and onnxruntime-gpu; skips without."""

from __future__ import annotations

import warnings
from pathlib import Path

import cuda_machine
import numpy as np
import onnxruntime
import pytest
from test_every_op import CASES, REFUSED, check, expected, kernel_model

import onnxfuse
from onnxfuse.custom_ops.case import Case, feed
from onnxfuse.runtime import kernels

CUDA = "CUDAExecutionProvider"
HAVE = kernels().get(CUDA, frozenset())

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(bool(cuda_machine.lacks()), reason=cuda_machine.lacks()),
]


def run(operator: str, case: Case) -> list[np.ndarray]:
    """The results of the CUDA kernel; a node placed elsewhere is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = onnxfuse.session(kernel_model(operator, case), providers=[CUDA])
    return session.run(None, feed(case))


@pytest.mark.parametrize(
    ("operator", "case"), [(operator, case) for operator, case in CASES if operator in HAVE], ids=str
)
def test_cuda_kernel_agrees_with_the_reference(operator: str, case: Case) -> None:
    check(case, run(operator, case), expected(operator, case), more=case.cuda_absolute)


@pytest.mark.parametrize(
    ("operator", "case", "message"),
    [(operator, case, message) for operator, case, message in REFUSED if operator in HAVE],
    ids=str,
)
def test_cuda_kernel_refuses_bad_input(operator: str, case: Case, message: str) -> None:
    with pytest.raises(Exception) as error:  # ONNX Runtime has no class for what custom operators raise
        run(operator, case)
    assert f"onnxfuse.{operator} (node the_node): " in str(error.value)
    assert message in str(error.value)


def test_the_profile_shows_the_kernel_on_the_cuda_provider(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    operator, case = next(entry for entry in CASES if entry[0] == "SwiGLU")
    session = onnxfuse.session(kernel_model(operator, case), providers=[CUDA], options=options)
    session.run(None, feed(case))
    profile = Path(session.end_profiling()).read_text()
    assert '"op_name" : "SwiGLU"' in profile
    assert f'"provider" : "{CUDA}"' in profile
