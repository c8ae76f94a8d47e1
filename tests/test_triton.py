"""Kernels written in Triton: compiling them ahead of time, see test_cuda_triton.py for running them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from onnxfuse.custom_ops import compile_triton
from onnxfuse.custom_ops.compile_triton import BuildError, architectures, parameters
from onnxfuse.custom_ops.swiglu import cases as swiglu
from onnxfuse.runtime import kernels, triton_kernels

CUDA = "CUDAExecutionProvider"
KERNEL = Path(swiglu.__file__).with_name("swiglu_triton.py")


def test_architectures_are_those_of_cmake() -> None:
    found = [(a.name, a.has_code, a.has_ptx) for a in architectures("80-real;90a-real;80-virtual,89")]
    assert found == [("80", True, False), ("90a", True, False), ("80", False, True), ("89", True, True)]
    with pytest.raises(BuildError, match="no architecture 'native': expected such as 90a-real"):
        architectures("native")


def test_a_signature_becomes_parameters_in_cpp() -> None:
    found = parameters("scale", ["x", "bias", "y", "factor", "count"], "*T:16, *fp32, *T:16, fp32, i64:16")
    declared = ["const T* x", "const float* bias", "const T* y", "float factor", "int64_t count"]
    assert [parameter.declaration for parameter in found] == declared
    assert [parameter.of_dtype("bf16") for parameter in found] == ["*bf16", "*fp32", "*bf16", "fp32", "i64"]
    assert [parameter.is_multiple_of_16 for parameter in found] == [True, False, True, False, True]


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        ("*T, i64, i64", r"has 3 entries, expected one each of \['x', 'n'\]"),
        ("*T, int", "n is 'int', expected such as"),
        ("*half, i64", r"x is '\*half', expected such as"),
        ("T, i64", "x is 'T', expected such as"),
        ("*T:8, i64", r"x is '\*T:8', expected such as"),
    ],
)
def test_a_bad_signature_is_refused(signature: str, message: str) -> None:
    with pytest.raises(BuildError, match=f"scale: .*{message}"):
        parameters("scale", ["x", "n"], signature)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(None in map(shutil.which, ("nvcc", "fatbinary")), reason="nvcc and fatbinary are not on the PATH")
def test_swiglu_compiles_for_every_architecture_without_a_gpu(tmp_path: Path) -> None:
    header = tmp_path / "swiglu" / "swiglu_triton.h"
    compile_triton.write(KERNEL, header, architectures("80-real;86-real;89-real;90a-real;80-virtual"), "fatbinary")
    text = header.read_text()
    assert "inline constexpr int64_t swiglu_BLOCK = 2048;" in text
    for dtype in ("float", "Half", "BFloat16"):
        arguments = f"const {dtype}* gate, const {dtype}* up, const {dtype}* y, int64_t count"
        for name in ("swiglu", "swiglu_vectors"):
            assert f"void {name}<{dtype}>(const cuda::Stream& stream, dim3 grid, {arguments})" in text
    assert header.with_suffix(".cc").read_text().count("alignas(16) const unsigned char onnxfuse_swiglu") == 6
    sources = Path(__file__).parent.parent / "custom_ops"
    command = ["nvcc", "-std=c++17", "-arch=sm_80", f"-I{sources}", f"-I{tmp_path}", "-c", "-o", tmp_path / "adapter.o"]
    made = subprocess.run(
        [*command, sources / "swiglu" / "swiglu_triton.cu"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr


def test_only_operators_with_cuda_kernels_have_triton_kernels() -> None:
    assert triton_kernels() <= kernels().get(CUDA, frozenset())
