"""Kernels that start before their predecessors end must not read what these have yet to write. Needs a GPU."""

from __future__ import annotations

import cuda_machine
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

import onnxfuse
from onnxfuse.custom_ops.body import DOMAIN
from onnxfuse.custom_ops.case import DTYPES

CUDA = "CUDAExecutionProvider"
LAYERS, WIDTH, HIDDEN = 12, 256, 352

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(bool(cuda_machine.lacks()), reason=cuda_machine.lacks()),
]


class Chain:
    """Nodes each of which needs what the one before wrote; weights are constant, or cast just before they are used."""

    def __init__(self, dtype: str, constant: bool, rows: int) -> None:
        self.dtype, self.has_constants, self.rows = DTYPES[dtype], constant, rows
        self.rng = np.random.default_rng(4)
        self.x = ir.val("x", ir.DataType.FLOAT, (1, rows, WIDTH))
        self.graph = ir.Graph([self.x], [], nodes=[], opset_imports={"": 18, DOMAIN: 1}, name="chain")
        self.inputs: dict[str, np.ndarray] = {}

    def add(
        self, op: str, *inputs: ir.Value | None, outputs: int = 1, domain: str = "", **attributes
    ) -> list[ir.Value]:
        node = ir.node(op, inputs, attributes, domain=domain, num_outputs=outputs)
        self.graph.append(node)
        return list(node.outputs)

    def cast(self, x: ir.Value, dtype: np.dtype) -> ir.Value:
        return self.add("Cast", x, to=ir.DataType.from_numpy(dtype))[0]

    def random(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(self.dtype)

    def constant(self, values: np.ndarray) -> ir.Value:
        name = f"constant_{len(self.graph.initializers)}"
        dtype = ir.DataType.from_numpy(values.dtype)
        value = ir.val(name, dtype, values.shape, const_value=ir.tensor(values, name=name))
        self.graph.initializers.add(value)
        return value

    def weight(self, *shape: int) -> ir.Value:
        values = self.random(*shape) / self.dtype.type(np.sqrt(shape[0]))
        if self.has_constants:
            return self.constant(values)
        name = f"weight_{len(self.inputs)}"
        self.inputs[name] = values.astype(np.float32)
        value = ir.val(name, ir.DataType.FLOAT, shape)
        self.graph.inputs.append(value)
        return self.cast(value, self.dtype)

    def run(self, captured: bool) -> np.ndarray:
        """The results of 20 inputs in turn; the output is the value that was added last."""
        y = self.cast(self.graph[-1].outputs[0], DTYPES["float32"])
        y.name, y.dtype, y.shape = "y", ir.DataType.FLOAT, self.x.shape
        self.graph.outputs.append(y)
        options = {"enable_cuda_graph": "1" if captured else "0"}
        session = onnxfuse.session(ir.Model(self.graph, ir_version=10), providers=[(CUDA, options)])
        x = np.zeros((1, self.rows, WIDTH), np.float32)
        bound = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(value, "cuda", 0)
            for name, value in {"x": x, "y": x, **self.inputs}.items()
        }
        binding = session.io_binding()
        for name in ("x", *self.inputs):
            binding.bind_ortvalue_input(name, bound[name])
        binding.bind_ortvalue_output("y", bound["y"])
        rng = np.random.default_rng(5)
        results = []
        for _ in range(20):
            bound["x"].update_inplace(rng.standard_normal(x.shape, dtype=np.float32))
            binding.synchronize_inputs()
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            results.append(bound["y"].numpy().copy())
        return np.stack(results)


def gated_mlps(dtype: str, constant: bool, rows: int) -> Chain:
    """Some with nodes of ONNX Runtime in between."""
    chain = Chain(dtype, constant, rows)
    h = skip = chain.cast(chain.x, DTYPES[dtype])
    for i in range(LAYERS):
        weights = chain.weight(WIDTH, HIDDEN), chain.weight(WIDTH, HIDDEN), chain.weight(HIDDEN, WIDTH)
        inputs = h, *weights, None, None, None, skip, chain.weight(WIDTH)
        h, skip = chain.add("GatedMLP", *inputs, outputs=2, domain=DOMAIN, activation="silu", epsilon=1e-5)
        if i % 3 == 2:
            (h,) = chain.add("Tanh", h)
    chain.add("Add", h, skip)
    return chain


def attentions(dtype: str, constant: bool, rows: int) -> Chain:
    """Projections, attention to a past of its own and to the new key, the output's projection."""
    chain = Chain(dtype, constant, rows)
    heads, past = 4, 70
    h = skip = chain.cast(chain.x, DTYPES[dtype])
    angles = np.arange(rows * (WIDTH // heads // 2), dtype=np.float32).reshape(1, rows, -1)
    tables = [chain.constant(table(angles).astype(DTYPES[dtype])) for table in (np.cos, np.sin)]
    for i in range(LAYERS):
        weights = [x for _ in range(3) for x in (chain.weight(WIDTH, WIDTH), None)]
        scale = chain.weight(WIDTH)
        q, k, v, skip = chain.add("Linear", h, skip, scale, *weights, outputs=4, domain=DOMAIN, epsilon=1e-5)
        cache = [chain.constant(chain.random(1, heads, past, WIDTH // heads)) for _ in range(2)]
        counts = {"num_heads": heads, "kv_num_heads": heads}
        (h,) = chain.add("Attention", q, k, v, *cache, None, None, *tables, domain=DOMAIN, causal=1, **counts)
        (h,) = chain.add("Linear", h, None, None, chain.weight(WIDTH, WIDTH), domain=DOMAIN)
        if i % 3 == 2:
            (h,) = chain.add("Tanh", h)
    chain.add("Add", h, skip)
    return chain


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("captured", [False, True], ids=["launched", "captured"])
@pytest.mark.parametrize("make", [gated_mlps, attentions])
@pytest.mark.parametrize("rows", [1, 4])
def test_constant_weights_give_what_others_give(rows: int, make, dtype: str, captured: bool) -> None:
    """Only constant weights are read ahead, all else is equal: so are the results, to the last bit."""
    early, late = (make(dtype, constant, rows).run(captured) for constant in (True, False))
    assert np.isfinite(late).all()
    assert np.ptp(late, axis=0).min() > 0
    np.testing.assert_array_equal(early, late)
