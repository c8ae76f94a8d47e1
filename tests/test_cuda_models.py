"""Whole models on the CUDA provider: fused ones equal their originals, in batches and token by token. Needs a GPU."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import cuda_machine
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import zoo
from small_llama import KV_HEADS, PASTS, PRESENTS, SIZE, VOCABULARY, small_llama
from zoo_expectations import RANDOM, UNOPTIMISED

import onnxfuse
from onnxfuse import cli
from onnxfuse.custom_ops.case import DTYPES
from onnxfuse.verify.model import validate

CUDA = "CUDAExecutionProvider"
EXACT = (CUDA, {"use_tf32": "0"})  # products of float32 in float32
ROOM, PROMPT, STEPS = 280, 5, 256

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(bool(cuda_machine.lacks()), reason=cuda_machine.lacks()),
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The path of a small Llama of a dtype, and of what is fused of it; each is made once."""

    @functools.cache
    def original(dtype: str) -> Path:
        path = tmp_path_factory.mktemp("llama") / "original.onnx"
        ir.save(small_llama(dtype), path)
        return path

    @functools.cache
    def fused(dtype: str, level: str, kv_cache: str) -> Path:
        path = tmp_path_factory.mktemp("llama") / "fused.onnx"
        made = onnxfuse.optimize(original(dtype), path, target="cuda", level=level, kv_cache=kv_cache)
        assert {"Attention", "AttentionBlock"} & made.report.fused.keys()
        assert made.report.fused["GatedMLP"] == 2
        return path

    return lambda dtype, *kind: fused(dtype, *kind) if kind else original(dtype)


def on_cuda(path: Path, **options: str) -> onnxruntime.InferenceSession:
    """A session with every fused node on the CUDA provider."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return onnxfuse.session(path, providers=[(CUDA, {**EXACT[1], **options}), "CPUExecutionProvider"])


@pytest.mark.parametrize("kv_cache", ["concat", "shared"])
@pytest.mark.parametrize("level", ["op", "block"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_fused_model_equals_its_original_at_every_size(llama, dtype: str, level: str, kv_cache: str) -> None:
    """Batches 1 and 3, prompts of 1, 4 and 17, pasts of 0, 5 and 64, padded left and right, both on the GPU."""
    fused = llama(dtype, level, kv_cache)
    on_cuda(fused)
    found = validate(llama(dtype), fused, library=onnxfuse.library_path(), provider="cuda")
    assert found.passed, found


def test_the_commands_run_the_kernels(llama, capsys) -> None:
    paths = [str(llama("float16")), str(llama("float16", "op", "concat"))]
    assert cli.main(["validate", *paths, "--provider", "cuda", "--json"]) == 0
    assert "was not used" not in capsys.readouterr().out
    assert cli.main(["bench", *paths, "--provider", "cuda", "--repeat", "1", "--prompt", "1"]) == 0
    assert "function bodies" not in capsys.readouterr().err


def step(token: int, place: int, total: int) -> dict[str, np.ndarray]:
    """The inputs for one token at `place`, of a mask with `total` columns."""
    mask = np.arange(total)[None] <= place
    return {"input_ids": [[token]], "attention_mask": mask, "position_ids": [[place]]}


def greedy(path: Path, dtype: str) -> tuple[list[int], np.ndarray]:
    """The tokens that the original chooses, and the logits [STEPS, VOCABULARY] of every step; its cache grows."""
    session = onnxruntime.InferenceSession(path, providers=[EXACT, "CPUExecutionProvider"])
    cache = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, KV_HEADS, 0, SIZE), DTYPES[dtype]), "cuda", 0)
        for name in PASTS
    }
    tokens, rows = list(range(1, PROMPT + 1)), []
    for place in range(PROMPT + STEPS - 1):
        binding = session.io_binding()
        for name, value in step(tokens[place], place, place + 1).items():
            binding.bind_cpu_input(name, np.array(value, np.int64))
        for name in PASTS:
            binding.bind_ortvalue_input(name, cache[name])
        for name in ("logits", *PRESENTS):
            binding.bind_output(name, "cpu" if name == "logits" else "cuda")
        session.run_with_iobinding(binding)
        logits, *presents = binding.get_outputs()
        cache = dict(zip(PASTS, presents, strict=True))
        if place >= PROMPT - 1:
            rows.append(logits.numpy()[0, 0].astype(np.float64))
            tokens.append(int(rows[-1].argmax()))
    return tokens, np.array(rows)


def forced(path: Path, dtype: str, tokens: list[int], graph: bool) -> np.ndarray:
    """The logits [STEPS, VOCABULARY] of a model with a shared cache that is given `tokens`, all in place."""
    session = on_cuda(path, enable_cuda_graph="1" if graph else "0")
    feed = {name: np.array(value, np.int64) for name, value in step(0, 0, ROOM).items()}
    shapes = {"logits": (1, 1, VOCABULARY)} | dict.fromkeys(PASTS, (1, KV_HEADS, ROOM, SIZE))
    arrays = feed | {name: np.zeros(shape, DTYPES[dtype]) for name, shape in shapes.items()}
    bound = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0) for name, array in arrays.items()}
    binding = session.io_binding()
    for name in (*feed, *PASTS):
        binding.bind_ortvalue_input(name, bound[name])
    binding.bind_ortvalue_output("logits", bound["logits"])
    for past, present in zip(PASTS, PRESENTS, strict=True):
        binding.bind_ortvalue_output(present, bound[past])
    rows = []
    for place in range(PROMPT + STEPS - 1):
        for name, value in step(tokens[place], place, ROOM).items():
            bound[name].update_inplace(np.array(value, np.int64))
        binding.synchronize_inputs()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        rows.append(bound["logits"].numpy()[0, 0].astype(np.float64))
    return np.array(rows[PROMPT - 1 :])


@pytest.mark.parametrize("graph", [False, True], ids=["launched", "captured"])
@pytest.mark.parametrize("level", ["op", "block"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_256_tokens_decoded_in_place_equal_the_original(llama, dtype: str, level: str, graph: bool) -> None:
    """The fused model is given the original's tokens and has to choose the same ones, but where two are as good.

    Logits differ by roundings: sums of some hundred terms in another order in float32, and in float16 some ten
    roundings of 2^-11 a layer, each relative to the size of all logits.
    """
    tokens, wanted = greedy(llama(dtype), dtype)
    found = forced(llama(dtype, level, "shared"), dtype, tokens, graph)
    tolerance = {"float32": 2e-5, "float16": 1e-2}[dtype] * np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)
    best = np.sort(wanted, axis=1)
    is_clear = best[:, -1] - best[:, -2] > 2 * tolerance
    assert is_clear.mean() > 0.5
    np.testing.assert_array_equal(found.argmax(axis=1)[is_clear], wanted.argmax(axis=1)[is_clear])


@pytest.mark.skipif(zoo.FOLDER is None, reason=zoo.ABSENT)
@pytest.mark.parametrize("entry", zoo.entries(), ids=lambda entry: entry.name)
def test_a_model_of_the_zoo_is_equal_on_cuda(entry: zoo.Entry, tmp_path: Path) -> None:
    """Against the sample's outputs, or the original on the CPU where the zoo has none."""
    fused = tmp_path / "fused.onnx"
    onnxfuse.optimize(entry.path, fused, target="cuda")
    options = onnxruntime.SessionOptions()
    if entry.name in UNOPTIMISED:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    feed, expected = entry.sample()
    session = onnxfuse.session(fused, providers=[EXACT, "CPUExecutionProvider"], options=options)
    names = [output.name for output in session.get_outputs()]
    actual = dict(zip(names, session.run(None, feed), strict=True))
    if entry.name in RANDOM:
        return
    if expected is None:
        plain = onnxruntime.SessionOptions()
        plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        original = onnxruntime.InferenceSession(entry.path, plain, providers=["CPUExecutionProvider"])
        expected = dict(zip(names, original.run(names, feed), strict=True))
    for name, wanted in expected.items():
        far = zoo.distance(zoo.defined(wanted, feed), zoo.defined(actual[name], feed))
        assert far <= entry.tolerance(wanted), (name, far)
