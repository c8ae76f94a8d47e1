"""library_path, session_options and session."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import onnxfuse
from onnxfuse import runtime
from onnxfuse.blocks import NAMES_INSIDE
from onnxfuse.custom_ops.body import DOMAIN
from onnxfuse.custom_ops.functions import attach, folders
from onnxfuse.errors import UsageError
from onnxfuse.runtime import kernels


def two_operators(with_functions: bool = True) -> ir.Model:
    """y = SwiGLU(RMSNorm(x, weight), x)"""
    x = ir.val("x", ir.DataType.FLOAT, (2, 8))
    weight = ir.val("weight", ir.DataType.FLOAT, (8,))
    norm = ir.node("RMSNorm", [x, weight], {"epsilon": 1e-5}, domain=DOMAIN, name="norm")
    norm.outputs[0].dtype, norm.outputs[0].shape = x.dtype, x.shape
    y = ir.val("y", ir.DataType.FLOAT, (2, 8))
    swiglu = ir.node("SwiGLU", [norm.outputs[0], x], domain=DOMAIN, name="swiglu", outputs=[y])
    graph = ir.Graph([x, weight], [y], nodes=[norm, swiglu], opset_imports={"": 18, DOMAIN: 1}, name="two")
    model = ir.Model(graph, ir_version=10)
    if with_functions:
        for node in (norm, swiglu):
            attach(node, model)
    return model


FEED = {"x": np.linspace(-3, 3, 16, dtype=np.float32).reshape(2, 8), "weight": np.ones(8, np.float32)}


def kernels_run(session: onnxruntime.InferenceSession) -> set[str]:
    """Our operators that a run of `session` executes; the others ran as their bodies."""
    session.run(None, FEED)
    profile = Path(session.end_profiling()).read_text()
    return {name for name in ("RMSNorm", "SwiGLU") if f'"op_name" : "{name}"' in profile}


def profiled(tmp_path: Path) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    return options


def test_library_path_is_a_shared_library() -> None:
    path = onnxfuse.library_path()
    assert path.name.startswith("libonnxfuse_ops.")
    assert path.read_bytes()[:4] == b"\x7fELF"


def test_session_takes_a_path_bytes_and_models(tmp_path: Path) -> None:
    model = two_operators()
    proto = ir.to_proto(model)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    results = [onnxfuse.session(m).run(None, FEED)[0] for m in (path, str(path), path.read_bytes(), proto, model)]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_kernels_run_by_default(tmp_path: Path) -> None:
    session = onnxfuse.session(two_operators(), options=profiled(tmp_path))
    assert kernels_run(session) == {"RMSNorm", "SwiGLU"}


def test_ops_chooses_the_kernels(tmp_path: Path) -> None:
    session = onnxfuse.session(two_operators(), options=profiled(tmp_path), ops=["SwiGLU"])
    assert kernels_run(session) == {"SwiGLU"}


def test_no_ops_leaves_the_bodies(tmp_path: Path) -> None:
    session = onnxfuse.session(two_operators(), options=profiled(tmp_path), ops=[])
    assert kernels_run(session) == set()


def test_sessions_with_different_ops_do_not_interfere(tmp_path: Path) -> None:
    with_kernel = onnxfuse.session(two_operators(), options=profiled(tmp_path), ops=["RMSNorm"])
    without = onnxfuse.session(two_operators(), options=profiled(tmp_path), ops=["SwiGLU"])
    assert kernels_run(with_kernel) == {"RMSNorm"}
    assert kernels_run(without) == {"SwiGLU"}


def test_an_unknown_op_is_refused() -> None:
    with pytest.raises(Exception, match=r"names the operator 'LayerNorm'; this library has .*RMSNorm"):
        onnxfuse.session_options(ops=["LayerNorm"])


def test_an_unknown_provider_is_refused() -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("onnxfuse.providers", "TPUExecutionProvider")
    with pytest.raises(Exception, match=r"names the execution provider 'TPUExecutionProvider'; this library has .*CPU"):
        options.register_custom_ops_library(str(onnxfuse.library_path()))


def test_options_that_have_the_operators_are_taken_as_they_are(tmp_path: Path) -> None:
    plain = profiled(tmp_path)
    for options in (onnxfuse.session_options(), plain, plain):
        assert onnxfuse.session_options(options) is options
        assert onnxfuse.session(two_operators(), options=options).run(None, FEED)
    assert kernels_run(onnxfuse.session(two_operators(), options=plain)) == {"RMSNorm", "SwiGLU"}
    few = onnxfuse.session_options(ops="SwiGLU")
    assert onnxfuse.session(two_operators(), options=few, ops=["SwiGLU"]).run(None, FEED)
    for other in ({}, {"ops": []}, {"ops": ["RMSNorm"]}):
        with pytest.raises(UsageError, match="have kernels of SwiGLU for CPUExecutionProvider already"):
            onnxfuse.session(two_operators(), options=few, **other)


def test_one_provider_may_be_given_by_itself() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = onnxfuse.session(two_operators(), providers="CPUExecutionProvider")
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_the_library_tells_its_kernels() -> None:
    operators = frozenset(folders()) | NAMES_INSIDE
    assert kernels()["CPUExecutionProvider"] == operators
    assert kernels().get("CUDAExecutionProvider", operators) == operators


def test_kernels_of_all_providers_together_leave_cpu_sessions_as_they_are(tmp_path: Path) -> None:
    options = profiled(tmp_path)
    options.register_custom_ops_library(str(onnxfuse.library_path()))
    model = ir.to_proto(two_operators()).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    assert kernels_run(session) == {"RMSNorm", "SwiGLU"}


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)
def test_asking_a_cpu_runtime_for_cuda_warns_and_runs() -> None:
    with pytest.warns(UserWarning, match=r"built without it: pip install 'onnxfuse\[gpu\]'"):
        session = onnxfuse.session(two_operators(), providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    expected = onnxfuse.session(two_operators()).run(None, FEED)[0]
    # the body's float32 operators round some ten times on numbers below 16
    np.testing.assert_allclose(session.run(None, FEED)[0], expected, rtol=1e-5, atol=1e-5)


def test_other_providers_get_the_bodies() -> None:
    model = ir.to_proto(two_operators(with_functions=False)).SerializeToString()
    options = onnxfuse.session_options(providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(Exception, match="onnxfuse"):  # no kernel is registered and this model has no function
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class OnCuda:
    """A session that says that it prefers CUDA."""

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.mark.parametrize("level", ["op", "block"])
def test_operators_without_a_cuda_kernel_are_named_inside_blocks_too(level: str, monkeypatch) -> None:
    tiny = Path(__file__).parent.parent / "examples" / "tiny_llama.onnx"
    model = ir.to_proto(onnxfuse.optimize(tiny, level=level, verify="none").model).SerializeToString()
    at_level_op = {"Attention", "GatedMLP", "RMSNorm", "RotaryEmbedding", "RotaryTable", "SkipRMSNorm"}
    operators = at_level_op | NAMES_INSIDE | {"Embedding"}
    monkeypatch.setattr(runtime, "kernels", lambda: {"CUDAExecutionProvider": frozenset(operators)})
    assert list(runtime._obstacles(OnCuda(), model, None)) == []
    monkeypatch.setattr(runtime, "kernels", lambda: {"CUDAExecutionProvider": frozenset(operators - {"Attention"})})
    (obstacle,) = runtime._obstacles(OnCuda(), model, None)
    assert obstacle.startswith("2 nodes Attention run as standard operators")


def test_python_started_in_the_checkout_finds_the_installed_operators() -> None:
    """The checkout's folder onnxfuse comes first there, without patterns and without operators."""
    script = "import onnxfuse, onnxfuse.catalog as c; print(onnxfuse.library_path().exists(), len(c.fusions()) > 10)"
    checkout = Path(__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=checkout)
    assert run.stdout.split() == ["True", "True"], run.stderr


def test_no_runtime_says_which_extra_to_take(tmp_path: Path) -> None:
    script = "import sys; sys.modules['onnxruntime'] = None; import onnxfuse; onnxfuse.session_options()"
    # Elsewhere: -c puts the working directory first, and a checkout's folder would hide the installed package.
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode != 0
    assert "pip install 'onnxfuse[cpu]'" in run.stderr
