"""The model zoo: exported models with samples, in the folder that ONNXFUSE_MODEL_ZOO names (see its README.md)."""

from __future__ import annotations

import functools
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

FOLDER = Path(os.environ["ONNXFUSE_MODEL_ZOO"]) if os.environ.get("ONNXFUSE_MODEL_ZOO") else None
ABSENT = "ONNXFUSE_MODEL_ZOO names no folder of models"
LLAMAS = ("hf", "course", "meta", "optimum", "post")  # groups that hold nothing but Llamas

# Largest difference from the original, relative to the value or to the output's root mean square if that is larger.
# The original itself is as far from exact arithmetic: tiny random networks amplify a rounding up to a thousandfold.
TOLERANCE = {"fp32": 2e-3, "fp16": 4e-2}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Entry:
    """A model of the zoo and what its manifest says of it."""

    name: str
    group: str
    dtype: str
    is_dynamic: bool
    layers: int
    expected: dict[str, object]
    inputs: tuple[dict, ...]

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.onnx"

    @property
    def is_llama(self) -> bool:
        return self.group in LLAMAS

    def tolerance(self, output: np.ndarray) -> float:
        return TOLERANCE["fp16" if "16" in self.dtype or output.dtype == np.float16 else "fp32"]

    def sample(self) -> tuple[Arrays, Arrays | None]:
        """Inputs, without padding where the zoo has such, and the original's outputs; None where it has none."""
        for kind in ("nopad.npz", "npz"):
            path = FOLDER / f"{self.name}.{kind}"
            if path.exists():
                with np.load(path) as arrays:
                    parts = {key: array for key, array in arrays.items()}
                return _of("in:", parts), _of("out:", parts) or None
        return self._random_inputs(), None

    def _random_inputs(self) -> Arrays:
        rng = np.random.default_rng(0)
        return {
            i["name"]: (rng.standard_normal(i["shape"]) / np.sqrt(i["shape"][-1])).astype(i["dtype"])
            for i in self.inputs
        }


def _of(kind: str, arrays: Arrays) -> Arrays:
    return {name.removeprefix(kind): array for name, array in arrays.items() if name.startswith(kind)}


@functools.cache
def entries() -> tuple[Entry, ...]:
    """Every model of the zoo, by name; none without a zoo."""
    if FOLDER is None:
        return ()
    manifest = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))
    return tuple(
        Entry(
            name=entry["name"],
            group=entry["group"],
            dtype=entry["dtype"] or "fp32",
            is_dynamic=bool(entry["dynamic"]),
            layers=entry["layers"] or 0,
            expected=entry["expected"] or {},
            inputs=tuple(entry["inputs"]),
        )
        for entry in sorted(manifest, key=lambda entry: entry["name"])
    )


def defined(output: np.ndarray, feed: Arrays) -> np.ndarray:
    """The values of an output that are not of padding tokens: exporters disagree on what those attend to.

    Tokens are on axis 1 of [B, S, ...] and on axis 2 of [B, N, S, D]; the mask [B, S] is the input of zeros and ones.
    """
    mask = next((a for a in feed.values() if a.ndim == 2 and ((a == 0) | (a == 1)).all()), None)
    tokens = output.swapaxes(1, 2) if output.ndim == 4 else output
    if mask is None or tokens.shape[:2] != mask.shape:
        return output
    return tokens[mask != 0]


def distance(reference: np.ndarray, actual: np.ndarray) -> float:
    """The largest difference relative to the value or to the root mean square; infinite if shapes or NaNs differ."""
    if reference.shape != actual.shape or reference.dtype != actual.dtype:
        return np.inf
    if reference.size == 0:
        return 0.0
    wanted, got = reference.astype(np.float64), actual.astype(np.float64)
    if not np.array_equal(np.isfinite(wanted), np.isfinite(got)):
        return np.inf
    wanted, got = wanted[np.isfinite(wanted)], got[np.isfinite(got)]
    scale = np.maximum(np.abs(wanted), np.sqrt(np.mean(wanted**2)) if wanted.size else 0)
    return float(np.max(np.abs(got - wanted) / np.maximum(scale, np.finfo(np.float64).tiny), initial=0.0))


def operators(model: ir.Model) -> Counter[str]:
    """How often each operator stands in the graph and its subgraphs; the bodies of fused operators do not count."""
    return Counter(node.op_type for node in model.graph.all_nodes())


def interface(path: Path) -> list[tuple[str, int, list[int | str]]]:
    """Names, dtypes and sizes of a model's inputs and outputs, in order."""
    graph = onnx.load(path, load_external_data=False).graph
    given = {initializer.name for initializer in graph.initializer}
    values = [*(value for value in graph.input if value.name not in given), *graph.output]
    return [
        (v.name, v.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in values
    ]
