"""Finds the operators of this package and gives the function body of a fused node."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType

import onnx_ir as ir

import onnxfuse.custom_ops
from onnxfuse.custom_ops.body import Body


@functools.cache
def folders() -> dict[str, str]:
    """The operators by name, each with the package of its folder."""
    found = {}
    for entry in pkgutil.iter_modules(onnxfuse.custom_ops.__path__, "onnxfuse.custom_ops."):
        if entry.ispkg:  # the compiled library and the modules of this folder are no operators
            found[importlib.import_module(entry.name).OPERATOR] = entry.name
    return found


def part(operator: str, name: str) -> ModuleType:
    """A module of an operator's folder: "function", "reference" or "cases"."""
    return importlib.import_module(f"{folders()[operator]}.{name}")


def body(node: ir.Node, opset: int) -> ir.Function:
    """The function body of a fused node, for a model of ai.onnx version `opset`.

    The node has its attributes, and its inputs have a dtype and a rank. The function's domain, name and overload are
    those the node must have; equal nodes get equal overloads, so a model needs each function once.
    """
    if node.op_type not in folders():
        raise ValueError(f"no operator {node.op_type!r} in domain onnxfuse; there are {', '.join(sorted(folders()))}")
    return Body(node, opset).build(part(node.op_type, "function").function)


def attach(node: ir.Node, model: ir.Model, made_by: Callable[[ir.Node, int], ir.Function] = body) -> None:
    """Gives a fused node its function body, in the model that holds the node."""
    function = made_by(node, model.opset_imports.get("", 1))
    node.overload = function.overload
    model.functions[function.identifier()] = function
