"""The CUDA kernels of every operator against the float64 reference. Needs a GPU and onnxruntime-gpu; skips without."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import cuda_machine
import numpy as np
import onnxruntime
import pytest
from test_attention_op import random_case
from test_every_op import (
    CASES,
    REFUSED,
    body_model,
    check,
    expected,
    kernel_model,
    model_of_all,
    one_case_of_each_body,
)

import onnxfuse
from onnxfuse.custom_ops.attention.cases import padding, shared
from onnxfuse.custom_ops.attention.reference import reference as attention
from onnxfuse.custom_ops.case import Case, feed, single_node_model
from onnxfuse.custom_ops.functions import folders
from onnxfuse.runtime import kernels

CUDA = "CUDAExecutionProvider"
HAVE = kernels().get(CUDA, frozenset())

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(bool(cuda_machine.lacks()), reason=cuda_machine.lacks()),
]


EXACT = (CUDA, {"use_tf32": "0"})  # products of float32 in float32


def run(operator: str, case: Case) -> list[np.ndarray]:
    """The results of the CUDA kernel; a node placed elsewhere is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = onnxfuse.session(kernel_model(operator, case), providers=[EXACT])
    return session.run(None, feed(case))


@pytest.mark.parametrize(
    ("operator", "case"),
    [(operator, case) for operator, case in CASES if operator in HAVE and case.device != "cpu"],
    ids=str,
)
def test_cuda_kernel_agrees_with_the_reference(operator: str, case: Case) -> None:
    check(case, run(operator, case), expected(operator, case), more=case.cuda_absolute)


@pytest.mark.parametrize("tf32", [False, True], ids=["exact", "tf32"])
@pytest.mark.parametrize("operator", sorted(HAVE & set(folders())))
def test_cuda_kernels_agree_when_all_cases_are_one_model(operator: str, tf32: bool) -> None:
    cases = [case for name, case in CASES if name == operator and case.device != "cpu"]
    model, inputs = model_of_all(operator, cases)
    results = iter(onnxfuse.session(model, providers=[CUDA if tf32 else EXACT]).run(None, inputs))
    for case in cases:
        more = case.cuda_absolute + tf32 * case.tf32_absolute
        check(case, [next(results) for _ in case.made], expected(operator, case), more=more)


def bodies() -> list[tuple[str, Case]]:
    """A case of each function body, and all where attention has a mask, which may hide every key from a query."""
    masked = [entry for entry in CASES if entry[1].inputs.get("attention_mask") is not None]
    return [entry for entry in one_case_of_each_body() if entry not in masked] + masked


@pytest.mark.parametrize(("operator", "case"), bodies(), ids=str)
def test_body_on_cuda_agrees_with_the_reference(operator: str, case: Case) -> None:
    want = expected(operator, case)
    session = onnxfuse.session(body_model(operator, case, 18, want), providers=[EXACT, "CPUExecutionProvider"], ops=[])
    check(case, session.run(None, feed(case)), want, more=case.body_absolute)


IN_THE_MASK, IN_THE_IDS = "shows keys up to", "is no row of the table"  # which only the device can read


@pytest.mark.parametrize(
    ("operator", "case", "message"),
    [entry for entry in REFUSED if entry[0] in HAVE and IN_THE_MASK not in entry[2] and IN_THE_IDS not in entry[2]],
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


@pytest.mark.parametrize("seed", range(6))
def test_random_attention_agrees_with_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(12):
        case = random_case(rng)
        check(case, run("Attention", case), expected("Attention", case), more=case.cuda_absolute)


@pytest.mark.parametrize("case", [case for _, case, message in REFUSED if IN_THE_MASK in message], ids=str)
def test_a_mask_that_does_not_fit_the_shared_cache_gives_nan_and_writes_nothing(case: Case) -> None:
    y, key, value = run("Attention", case)
    assert np.isnan(y).all()
    np.testing.assert_array_equal(key, case.arrays()["past_key"])
    np.testing.assert_array_equal(value, case.arrays()["past_value"])


@pytest.mark.parametrize("case", [case for _, case, message in REFUSED if IN_THE_IDS in message], ids=str)
def test_an_id_that_is_no_row_gives_nan_alone(case: Case) -> None:
    ids, table = case.arrays().values()
    is_row = (ids >= -len(table)) & (ids < len(table))
    (y,) = run("Embedding", case)
    assert np.isnan(y[~is_row]).all() and (~is_row).any()
    np.testing.assert_array_equal(y[is_row], table[ids[is_row]])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("size", [64, 128, 256])
def test_what_lies_behind_the_keys_of_a_shared_cache_is_not_used(size: int, dtype: str) -> None:
    """A prompt whose last tile of keys ends where rows of NaN begin."""
    one = shared(batch=2, length=200, room=500, new=150, heads=(4, 2), size=size, dtype=dtype)
    caches = {name: one.arrays()[name] for name in ("past_key", "past_value")}
    for cache in caches.values():
        cache[:, :, 50:] = np.nan
    one = replace(one, inputs={**one.inputs, **caches})
    results, wanted = run("Attention", one), expected("Attention", one)
    assert np.isfinite(results[0]).all()
    check(one, results, wanted, more=one.cuda_absolute)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("graph", [False, True], ids=["launched", "captured"])
def test_decoding_in_a_shared_cache_in_place(dtype: str, graph: bool) -> None:
    """Ten steps with past and present bound to one memory of the device, without and within a CUDA graph."""
    batch, heads, kv, size, room = 2, 8, 2, 64, 300
    one = shared(batch=batch, length=room, room=room, new=1, heads=(heads, kv), size=size, dtype=dtype)
    session = onnxfuse.session(
        single_node_model("Attention", one, 18, [(batch, 1, heads * size), *[(batch, kv, room, size)] * 2]),
        providers=[(CUDA, {"enable_cuda_graph": "1" if graph else "0"})],
    )
    rng = np.random.default_rng(2)
    wanted = {name: rng.standard_normal((batch, kv, room, size)).astype(dtype) for name in ("past_key", "past_value")}
    arrays = {
        "q": np.zeros((batch, 1, heads * size), dtype),
        "k": np.zeros((batch, 1, kv * size), dtype),
        "v": np.zeros((batch, 1, kv * size), dtype),
        "attention_mask": np.zeros((batch, room), np.int64),
        **wanted,
    }
    bound = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0) for name, array in arrays.items()}
    bound["y"] = onnxruntime.OrtValue.ortvalue_from_numpy(arrays["q"], "cuda", 0)
    binding = session.io_binding()
    for name in arrays:
        binding.bind_ortvalue_input(name, bound[name])
    binding.bind_ortvalue_output("y", bound["y"])
    binding.bind_ortvalue_output("present_key", bound["past_key"])
    binding.bind_ortvalue_output("present_value", bound["past_value"])
    for length in range(200, 210):
        arrays["attention_mask"][:, :length] = padding("left", batch, length)
        for name in ("q", "k", "v"):
            arrays[name] = rng.standard_normal(arrays[name].shape).astype(dtype)
        for name in ("q", "k", "v", "attention_mask"):
            bound[name].update_inplace(arrays[name])
        binding.synchronize_inputs()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        y, key, value = attention(**arrays | wanted, **one.attributes)
        np.testing.assert_allclose(bound["y"].numpy(), y, rtol=one.relative, atol=one.absolute + one.cuda_absolute)
        wanted = {"past_key": key.astype(dtype), "past_value": value.astype(dtype)}
    for name, array in wanted.items():
        np.testing.assert_array_equal(bound[name].numpy(), array)


@pytest.mark.parametrize("level", ["op", "block"])
def test_a_fused_model_equals_the_original(level: str, tmp_path: Path) -> None:
    """A Llama of two layers, its prompt and then its tokens one by one."""
    tiny = Path(__file__).parent.parent / "examples" / "tiny_llama.onnx"
    fused = tmp_path / "fused.onnx"
    onnxfuse.optimize(tiny, output=fused, target="cuda", level=level)
    original = onnxruntime.InferenceSession(tiny, providers=["CPUExecutionProvider"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = onnxfuse.session(fused, providers=[EXACT, "CPUExecutionProvider"])
    names = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    rng = np.random.default_rng(3)
    pasts = [{f"past_key_values.{name}": np.zeros((2, 2, 0, 8), np.float32) for name in names} for _ in range(2)]
    length = 0
    for new in (7, 1, 1, 3):
        length += new
        mask = padding("left", 2, length)
        tokens = {
            "input_ids": rng.integers(0, 64, (2, new)),
            "attention_mask": mask,
            "position_ids": np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, -new:],
        }
        results = []
        for side, past in zip((original, session), pasts, strict=True):
            logits, *present = side.run(["logits", *(f"present.{name}" for name in names)], tokens | past)
            past.update(zip(past, present, strict=True))
            results.append(logits[mask[:, -new:] != 0])
        # float32 sums of up to some hundred terms in another order, through two layers
        np.testing.assert_allclose(results[1], results[0], rtol=0, atol=2e-5 * np.abs(results[0]).max())
