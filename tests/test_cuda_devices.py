"""Sessions beside each other: on several GPUs of one process, and in several threads on one. Needs a GPU or two."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cuda_machine
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from small_llama import KV_HEADS, PASTS, SIZE, VOCABULARY, small_llama
from test_every_op import CASES, check, expected, kernel_model

import onnxfuse
from onnxfuse.custom_ops.case import DTYPES, Case, feed
from onnxfuse.custom_ops.functions import folders
from onnxfuse.custom_ops.swiglu import cases as swiglu

CUDA = "CUDAExecutionProvider"
EACH = 12  # cases of an operator

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(bool(cuda_machine.lacks()), reason=cuda_machine.lacks()),
]
on_two_devices = pytest.mark.skipif(
    cuda_machine.devices() < 2, reason=f"this machine has {cuda_machine.devices()} GPU, two are needed"
)


def session_on(device: int, model: ir.Model | Path) -> onnxruntime.InferenceSession:
    """A session with every fused node on this GPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return onnxfuse.session(model, providers=[(CUDA, {"device_id": str(device)}), "CPUExecutionProvider"])


def some_of(operator: str) -> list[Case]:
    """Cases from all over the list, so that every kernel and dtype is among them."""
    cases = [case for name, case in CASES if name == operator and case.device != "cpu"]
    return cases[:: max(1, len(cases) // EACH)]


@on_two_devices
@pytest.mark.parametrize("operator", sorted(folders()))
def test_an_operator_on_the_second_device_gives_what_it_gives_on_the_first(operator: str) -> None:
    """The second one goes first, so that what is looked up once is looked up there."""
    for case in some_of(operator):
        second, first = (session_on(device, kernel_model(operator, case)).run(None, feed(case)) for device in (1, 0))
        check(case, second, expected(operator, case), more=case.cuda_absolute)
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module", params=["float32", "float16"])
def fused(request, tmp_path_factory) -> tuple[str, Path]:
    """The dtype and the path of a fused Llama."""
    path = tmp_path_factory.mktemp("llama") / "fused.onnx"
    onnxfuse.optimize(small_llama(request.param), path, target="cuda", level="block")
    return request.param, path


def decoded(session: onnxruntime.InferenceSession, dtype: str, seed: int) -> np.ndarray:
    """The logits of a random prompt and of 20 tokens after it, two rows each."""
    rng = np.random.default_rng(seed)
    cache = {name: np.zeros((2, KV_HEADS, 0, SIZE), DTYPES[dtype]) for name in PASTS}
    rows, total = [], 0
    for new in (30 + seed, *[1] * 20):
        total += new
        tokens = {
            "input_ids": rng.integers(0, VOCABULARY, (2, new)),
            "attention_mask": np.ones((2, total), np.int64),
            "position_ids": np.broadcast_to(np.arange(total - new, total), (2, new)),
        }
        logits, *presents = session.run(None, tokens | cache)
        cache = dict(zip(PASTS, presents, strict=True))
        rows.append(logits[:, -1])
    return np.array(rows)


def check_together(sessions: list[onnxruntime.InferenceSession], dtype: str) -> None:
    """Fails unless all decode at once, each in a thread, what they decode one after the other, to the last bit."""
    alone = [decoded(session, dtype, seed) for seed, session in enumerate(sessions)]
    for _ in range(3):
        with ThreadPoolExecutor(len(sessions)) as threads:
            together = list(threads.map(decoded, sessions, [dtype] * len(sessions), range(len(sessions))))
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_array_equal(a, b)


def test_two_sessions_at_once_give_what_they_give_one_after_the_other(fused) -> None:
    dtype, path = fused
    check_together([session_on(0, path), session_on(0, path)], dtype)


def test_one_session_in_two_threads_gives_what_it_gives_in_one(fused) -> None:
    dtype, path = fused
    check_together([session_on(0, path)] * 2, dtype)


@on_two_devices
def test_sessions_on_two_devices_at_once_give_what_they_give_one_after_the_other(fused) -> None:
    dtype, path = fused
    sessions = [session_on(device, path) for device in (1, 0, 1, 0)]
    check_together(sessions, dtype)
    np.testing.assert_array_equal(*(decoded(session, dtype, 0) for session in sessions[:2]))


@on_two_devices
def test_a_graph_is_captured_on_the_second_device() -> None:
    """SwiGLU with its tensors there."""
    case = swiglu.case((8, 4096), "float32")
    options = {"device_id": "1", "enable_cuda_graph": "1"}
    session = onnxfuse.session(kernel_model("SwiGLU", case), providers=[(CUDA, options)])
    arrays, (want,) = feed(case), expected("SwiGLU", case)
    bound = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 1) for name, array in arrays.items()}
    name = session.get_outputs()[0].name
    bound[name] = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros_like(arrays["up"]), "cuda", 1)
    binding = session.io_binding()
    for given in arrays:
        binding.bind_ortvalue_input(given, bound[given])
    binding.bind_ortvalue_output(name, bound[name])
    for _ in range(3):
        session.run_with_iobinding(binding)
    check(case, [bound[name].numpy()], (want,))
