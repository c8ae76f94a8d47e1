"""Mistakes that the author of a rewrite might make: the operator is there, and one thing about it is wrong."""

from __future__ import annotations

import random
from collections.abc import Callable

import onnx_ir as ir
import pytest

from onnxfuse import catalog
from onnxfuse.fusion import Fusion
from onnxfuse.operators import OWN

Fault = Callable[[ir.Node], bool]  # breaks a node; False where it has nothing to break


def scaled(name: str, factor: float, otherwise: float = 0.0) -> Fault:
    def fault(node: ir.Node) -> bool:
        value = node.attributes[name].value if name in node.attributes else otherwise
        node.attributes[name] = ir.AttrFloat32(name, value * factor)
        return value != 0

    return fault


def flipped(name: str) -> Fault:
    def fault(node: ir.Node) -> bool:
        node.attributes[name] = ir.AttrInt64(name, 1 - (node.attributes[name].value if name in node.attributes else 0))
        return True

    return fault


def exchanged(first: int, second: int) -> Fault:
    def fault(node: ir.Node) -> bool:
        a, b = node.inputs[first], node.inputs[second]
        node.replace_input_with(first, b)
        node.replace_input_with(second, a)
        return a is not b

    return fault


def left_out(index: int) -> Fault:
    def fault(node: ir.Node) -> bool:
        if index >= len(node.inputs) or node.inputs[index] is None:
            return False
        node.replace_input_with(index, None)
        return True

    return fault


def wider_window(node: ir.Node) -> bool:
    window = node.attributes["window"].value
    node.attributes["window"] = ir.AttrInt64("window", window + 1)
    return window > 0


def other_activation(node: ir.Node) -> bool:
    known = node.attributes["activation"].value if "activation" in node.attributes else "silu"
    node.attributes["activation"] = ir.AttrString("activation", "gelu_tanh" if known == "silu" else "silu")
    return True


FAULTS: dict[str, dict[str, Fault]] = {
    "RMSNorm": {"epsilon": scaled("epsilon", 300.0)},
    "SkipRMSNorm": {"epsilon": scaled("epsilon", 300.0)},
    "RotaryTable": {"scale": scaled("scale", 1.01, otherwise=1.0)},
    "RotaryEmbedding": {"tables": exchanged(1, 2), "pairs": flipped("interleaved")},
    "Attention": {
        "scale": scaled("scale", 1.3),
        "causal": flipped("causal"),
        "window": wider_window,
        "padding": left_out(5),
        "bias": left_out(6),
        "keys": exchanged(1, 2),
    },
    "SwiGLU": {"gate": exchanged(0, 1)},
    "GatedMLP": {"gate": exchanged(1, 2), "activation": other_activation},
}


def shuffled(operator: str, seed: str) -> list[tuple[str, Fault]]:
    """The operator's faults in an order that follows from `seed`."""
    found = sorted(FAULTS[operator].items())
    random.Random(seed).shuffle(found)
    return found


def break_rewrites(operator: str, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> list[ir.Node]:
    """Put the fault into every fusion that makes the operator; the nodes that it changes will be listed."""
    broken: list[ir.Node] = []
    for fusion in catalog.fusions():
        if fusion.op == operator:
            monkeypatch.setattr(fusion, "rewriting", _breaking(fusion, fault, broken))
    return broken


def _breaking(fusion: Fusion, fault: Fault, broken: list[ir.Node]) -> Callable[..., object]:
    rewriting = fusion.rewriting

    def wrong(new, m):
        built = rewriting(new, m)
        broken.extend(n for n in new.nodes if n.domain == OWN and n.op_type == fusion.op and fault(n))
        return built

    return wrong
