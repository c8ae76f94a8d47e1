"""Constants that are computed as they are written: their bytes, and how much memory that takes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx_ir as ir
import pytest
from graphs import model_of

from onnxfuse import derived
from onnxfuse.custom_ops.packing import pack, packed_shape
from onnxfuse.derived import DerivedTensor
from onnxfuse.normalise import normalise

SHAPE = (512, 2048)  # 4 MiB of float32


def weight(tmp_path) -> tuple[ir.Value, np.ndarray]:
    """An initializer whose content lies in a file."""
    array = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    (tmp_path / "w.bin").write_bytes(array.tobytes())
    stored = ir.ExternalTensor(
        "w.bin", 0, array.nbytes, ir.DataType.FLOAT, shape=ir.Shape(SHAPE), name="w", base_dir=tmp_path
    )
    return ir.Value(name="w", const_value=stored, shape=stored.shape, type=ir.TensorType(stored.dtype)), array


def written(tensor: ir.TensorProtocol, tmp_path) -> tuple[bytes, int]:
    """What `tofile` writes, and the bytes of memory it needs meanwhile."""
    with (tmp_path / "out.bin").open("wb") as file:
        tracemalloc.start()
        tensor.tofile(file)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return (tmp_path / "out.bin").read_bytes(), peak


def test_a_packed_weight_is_written_slab_by_slab(tmp_path, monkeypatch):
    monkeypatch.setattr(derived, "SLAB", 1 << 18)
    value, array = weight(tmp_path)
    found, peak = written(DerivedTensor(value, pack, packed_shape(SHAPE), "packed"), tmp_path)
    assert found == pack(array).tobytes()
    assert peak < 2 << 18


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ("Transpose<perm = [1, 0]>(w)", lambda w: w.T),
        ("Cast<to = 10>(w)", lambda w: w.astype(np.float16)),
        ("Reshape(w, rows)", lambda w: w),
        ("Slice(w, start, end, axis)", lambda w: w[:, 32:2016]),
    ],
)
def test_a_moved_weight_is_written_slab_by_slab(tmp_path, monkeypatch, node, expected):
    monkeypatch.setattr(derived, "SLAB", 1 << 18)
    value, array = weight(tmp_path)
    wanted = np.ascontiguousarray(expected(array))
    dtype = "float16" if wanted.dtype == np.float16 else "float"
    constants = "int64[1] start = {32}, int64[1] end = {2016}, int64[1] axis = {1}, int64[2] rows = {1024, 1024}"
    model = model_of(f"v = {node} y = MatMul(x, v)", f"{dtype}[S,T] x, float[512,2048] w", f"{dtype}[S,N] y", constants)
    (given,) = [v for v in model.graph.inputs if v.name == "w"]
    given.replace_all_uses_with(value)
    model.graph.inputs.remove(given)
    model.graph.initializers.add(value)
    normalise(model)
    (product,) = model.graph
    found, peak = written(product.inputs[1].const_value, tmp_path)
    assert found == wanted.tobytes()
    assert peak < 2 << 18


def test_a_weight_that_is_moved_twice_is_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(derived, "SLAB", 1 << 18)
    value, array = weight(tmp_path)
    reads = []

    def turned() -> ir.TensorProtocol:
        reads.append(1)
        return ir.Tensor(np.ascontiguousarray(array.T))

    value.const_value = ir.LazyTensor(turned, dtype=ir.DataType.FLOAT, shape=ir.Shape(SHAPE[::-1]))
    found, _ = written(DerivedTensor(value, pack, packed_shape(SHAPE[::-1]), "packed"), tmp_path)
    assert found == pack(np.ascontiguousarray(array.T)).tobytes() and len(reads) == 1
