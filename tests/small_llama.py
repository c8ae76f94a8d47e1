"""A small Llama as an exporter writes it, in standard operators: two layers, grouped queries, a cache, random weights.

The dtype T of weights and activations is float32, float16 or bfloat16; norms, rotary table and softmax are float32
inside, as in transformers. Inputs: input_ids [B, S], attention_mask [B, P + S], position_ids [B, S] and the pasts
[B, KV_HEADS, P, SIZE] that PASTS names; outputs: logits [B, S, VOCABULARY] and the presents.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from onnxfuse.custom_ops.case import DTYPES

LAYERS, HEADS, KV_HEADS, SIZE = 2, 4, 2, 64
WIDTH, INNER, VOCABULARY = HEADS * SIZE, 352, 500
PASTS = tuple(f"past_{part}_{layer}" for layer in range(LAYERS) for part in ("key", "value"))
PRESENTS = tuple(name.replace("past", "present") for name in PASTS)

MASK_AND_TABLE = """
    h_0 = Gather (table, input_ids)
    column = Unsqueeze (position_ids, last)
    position = Cast <to=1> (column)
    half_angle = Mul (position, inv_freq)
    angle = Concat <axis=-1> (half_angle, half_angle)
    cos_float = Cos (angle)
    sin_float = Sin (angle)
    cos_of_row = Cast <to={T}> (cos_float)
    sin_of_row = Cast <to={T}> (sin_float)
    cos = Unsqueeze (cos_of_row, one)
    sin = Unsqueeze (sin_of_row, one)
    shape_new = Shape (input_ids)
    new = Gather (shape_new, one_scalar)
    shape_all = Shape (attention_mask)
    all = Gather (shape_all, one_scalar)
    past = Sub (all, new)
    keys = Range (zero_scalar, all, one_scalar)
    queries = Range (past, all, one_scalar)
    query_column = Unsqueeze (queries, last)
    causal = LessOrEqual (keys, query_column)
    is_token = Cast <to=9> (attention_mask)
    token_row = Unsqueeze (is_token, one_two)
    shown = And (causal, token_row)
    mask_float = Where (shown, zero, lowest)
    mask = Cast <to={T}> (mask_float)
"""
NORM = """
    {y}_float = Cast <to=1> ({x})
    {y}_square = Mul ({y}_float, {y}_float)
    {y}_mean = ReduceMean ({y}_square, last)
    {y}_shifted = Add ({y}_mean, epsilon)
    {y}_root = Sqrt ({y}_shifted)
    {y}_quotient = Div ({y}_float, {y}_root)
    {y}_normal = Cast <to={T}> ({y}_quotient)
    {y} = Mul ({y}_normal, weight_{y})
"""
PROJECTED = """
    {y}_flat = MatMul (n_{l}, weight_{y})
    {y}_heads = Reshape ({y}_flat, {shape})
    {y} = Transpose <perm=[0, 2, 1, 3]> ({y}_heads)
"""
ROTATED = """
    {y}_low, {y}_high = Split <axis=-1, num_outputs=2> ({x})
    {y}_negative = Neg ({y}_high)
    {y}_other = Concat <axis=-1> ({y}_negative, {y}_low)
    {y}_by_cos = Mul ({x}, cos)
    {y}_by_sin = Mul ({y}_other, sin)
    {y} = Add ({y}_by_cos, {y}_by_sin)
"""
REPEATED = """
    {y}_apart = Unsqueeze ({x}, two)
    {y}_expanded = Expand ({y}_apart, group)
    {y} = Reshape ({y}_expanded, all_heads)
"""
ATTENTION = """
    keys_{l}_columns = Transpose <perm=[0, 1, 3, 2]> (keys_{l})
    scores_{l} = MatMul (rotated_q_{l}, keys_{l}_columns)
    scaled_{l} = Mul (scores_{l}, scale)
    masked_{l} = Add (scaled_{l}, mask)
    masked_{l}_float = Cast <to=1> (masked_{l})
    softmax_{l} = Softmax <axis=-1> (masked_{l}_float)
    probability_{l} = Cast <to={T}> (softmax_{l})
    mixed_{l} = MatMul (probability_{l}, values_{l})
    mixed_rows_{l} = Transpose <perm=[0, 2, 1, 3]> (mixed_{l})
    mixed_flat_{l} = Reshape (mixed_rows_{l}, flat)
    attention_{l} = MatMul (mixed_flat_{l}, weight_o_{l})
    a_{l} = Add (h_{l}, attention_{l})
"""
MLP = """
    gate_{l} = MatMul (m_{l}, weight_gate_{l})
    up_{l} = MatMul (m_{l}, weight_up_{l})
    sigmoid_{l} = Sigmoid (gate_{l})
    silu_{l} = Mul (gate_{l}, sigmoid_{l})
    product_{l} = Mul (silu_{l}, up_{l})
    down_{l} = MatMul (product_{l}, weight_down_{l})
    h_{next} = Add (a_{l}, down_{l})
"""


def small_llama(dtype: str) -> ir.Model:
    """The model where T is `dtype`; its weights are the same for each, but for their rounding."""
    number = ir.DataType.from_numpy(DTYPES[dtype])
    text = MASK_AND_TABLE
    for layer in range(LAYERS):
        text += NORM.format(y=f"n_{layer}", x=f"h_{layer}", T="{T}")
        for part, shape in (("q", "heads"), ("k", "kv_heads"), ("v", "kv_heads")):
            text += PROJECTED.format(y=f"{part}_{layer}", l=layer, shape=shape)
        for part in ("q", "k"):
            text += ROTATED.format(y=f"rotated_{part}_{layer}", x=f"{part}_{layer}")
        for part, new in (("key", f"rotated_k_{layer}"), ("value", f"v_{layer}")):
            text += f"present_{part}_{layer} = Concat <axis=2> (past_{part}_{layer}, {new})\n"
            text += REPEATED.format(y=f"{part}s_{layer}", x=f"present_{part}_{layer}")
        text += ATTENTION.format(l=layer, T="{T}")
        text += NORM.format(y=f"m_{layer}", x=f"a_{layer}", T="{T}")
        text += MLP.format(l=layer, next=layer + 1)
    text += NORM.format(y="f", x=f"h_{LAYERS}", T="{T}") + "logits = MatMul (f, weight_head)\n"
    kind = {"bfloat16": "bfloat16", "float16": "float16", "float32": "float"}[dtype]
    ids = "int64[b,s] input_ids, int64[b,t] attention_mask, int64[b,s] position_ids"
    inputs = ", ".join([ids, *(f"{kind}[b,{KV_HEADS},p,{SIZE}] {name}" for name in PASTS)])
    outputs = ", ".join(
        [f"{kind}[b,s,{VOCABULARY}] logits", *(f"{kind}[b,{KV_HEADS},t,{SIZE}] {name}" for name in PRESENTS)]
    )
    header = '<ir_version: 10, opset_import: ["": 18]>'
    proto = onnx.parser.parse_model(f"{header} llama ({inputs}) => ({outputs}) {{ {text.format(T=number.value)} }}")
    arrays = _constants(DTYPES[dtype]) | _weights(DTYPES[dtype])
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    model = ir.from_proto(proto)
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def _constants(dtype: np.dtype) -> dict[str, np.ndarray]:
    integers = {
        "zero_scalar": 0,
        "one_scalar": 1,
        "one": [1],
        "two": [2],
        "last": [-1],
        "one_two": [1, 2],
        "heads": [0, 0, HEADS, SIZE],
        "kv_heads": [0, 0, KV_HEADS, SIZE],
        "group": [1, 1, HEADS // KV_HEADS, 1, 1],
        "all_heads": [0, HEADS, -1, SIZE],
        "flat": [0, 0, WIDTH],
    }
    numbers = {"zero": 0, "lowest": float(ml_dtypes.finfo(dtype).min), "epsilon": 1e-5}
    return {
        **{name: np.array(value, np.int64) for name, value in integers.items()},
        **{name: np.array(value, np.float32) for name, value in numbers.items()},
        "scale": np.array(SIZE**-0.5, dtype),
        "inv_freq": (10000.0 ** (-np.arange(0, SIZE, 2) / SIZE)).astype(np.float32),
    }


def _weights(dtype: np.dtype) -> dict[str, np.ndarray]:
    """Products keep the size of what they multiply, but queries and keys are larger, so that tokens attend to few."""
    rng = np.random.default_rng(0)
    shapes = {"head": (WIDTH, VOCABULARY)}
    for layer in range(LAYERS):
        shapes |= {f"{part}_{layer}": (WIDTH, HEADS * SIZE) for part in ("q", "o")}
        shapes |= {f"{part}_{layer}": (WIDTH, KV_HEADS * SIZE) for part in ("k", "v")}
        shapes |= {f"{part}_{layer}": (WIDTH, INNER) for part in ("gate", "up")}
        shapes |= {f"down_{layer}": (INNER, WIDTH)}
    norms = ["f", *(f"{norm}_{layer}" for layer in range(LAYERS) for norm in ("n", "m"))]
    weights = {f"weight_{name}": rng.standard_normal(shape) / np.sqrt(shape[0]) for name, shape in shapes.items()}
    weights |= {f"weight_{name}": rng.uniform(0.5, 1.5, WIDTH) for name in norms}
    weights["table"] = rng.standard_normal((VOCABULARY, WIDTH))
    for layer in range(LAYERS):
        for part in ("q", "k"):
            weights[f"weight_{part}_{layer}"] *= 1.5
    return {name: array.astype(dtype) for name, array in weights.items()}
