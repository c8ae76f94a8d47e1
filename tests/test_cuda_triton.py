"""The kernels written in Triton beside those in C++. Needs a GPU and a library built with ONNXFUSE_TRITON=ON."""

from __future__ import annotations

import cuda_machine
import numpy as np
import onnxruntime
import pytest
from test_every_op import check, expected, kernel_model

import onnxfuse
from onnxfuse.custom_ops.case import Case, feed
from onnxfuse.custom_ops.swiglu import cases as swiglu
from onnxfuse.runtime import triton_kernels

CUDA = "CUDAExecutionProvider"
LANGUAGES = ["C++", "Triton"]

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(bool(cuda_machine.lacks()), reason=cuda_machine.lacks()),
    pytest.mark.skipif("SwiGLU" not in triton_kernels(), reason="the library was built with ONNXFUSE_TRITON=OFF"),
]


def session(case: Case, language: str, **options: str) -> onnxruntime.InferenceSession:
    """One node SwiGLU, whose kernel is written in `language`."""
    chosen = onnxruntime.SessionOptions()
    if language == "C++":
        chosen.add_session_config_entry("onnxfuse.triton", "0")
    return onnxfuse.session(kernel_model("SwiGLU", case), providers=[(CUDA, options)], options=chosen)


@pytest.mark.parametrize("case", list(swiglu.cases()), ids=str)
def test_both_give_the_same_to_the_last_bit(case: Case) -> None:
    (cpp,), (triton,) = (session(case, language).run(None, feed(case)) for language in LANGUAGES)
    np.testing.assert_array_equal(cpp, triton)
    check(case, [triton], expected("SwiGLU", case))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_kernel_that_was_asked_for_runs(language: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch's profiler tells the names of kernels")
    one = session(swiglu.case((8, 4096), "float32"), language)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        one.run(None, feed(swiglu.case((8, 4096), "float32")))
    (name,) = {event.key for event in profile.key_averages() if "swiglu" in event.key}
    assert ("swiglu_cuda" in name) == (language == "C++")


def test_the_triton_kernel_is_captured_in_a_cuda_graph() -> None:
    """Replayed on new values in place, with 16-byte loads and without."""
    for shape in ((8, 4096), (3, 37)):
        case = swiglu.case(shape, "float32")
        captured = session(case, "Triton", enable_cuda_graph="1")
        arrays = feed(case)
        bound = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0) for name, array in arrays.items()}
        bound["y"] = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32), "cuda", 0)
        binding = captured.io_binding()
        for name in arrays:
            binding.bind_ortvalue_input(name, bound[name])
        binding.bind_ortvalue_output("y", bound["y"])
        for factor in (1, 2, 3, 4):
            bound["gate"].update_inplace(arrays["gate"] * np.float32(factor))
            binding.synchronize_inputs()
            captured.run_with_iobinding(binding)
            binding.synchronize_outputs()
            (want,) = session(case, "C++").run(None, arrays | {"gate": arrays["gate"] * np.float32(factor)})
            np.testing.assert_array_equal(bound["y"].numpy(), want)
