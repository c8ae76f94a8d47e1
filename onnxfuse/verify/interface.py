"""What the inputs of a language model mean, found from names, dtypes, shapes and first users.

| role | dims | drawn as |
|---|---|---|
| tokens | [B, S] int | rows of the embedding table it indexes |
| mask | [B, T] any dtype | 1 visible, 0 padding |
| positions | [B, S] or [S] int | place among the visible tokens |
| past | [B, N, P, ...] or [B, P, N, D] float | a cache of keys or values |
| buffer | [B, N, T, D] float, written in place | a cache with room for the new tokens |
| embeddings | [B, S, H] float | normal |
| offset | [] int | P, the tokens already in the cache |
| scores | [..., S, T] float | 0 or very negative, added to attention scores |
| values | any float | normal |
| numbers | any other | small integers, and those that the model compares them with; booleans |

B is the batch, S the new tokens, P the past ones, T = P + S. A dimension that no role explains is bound by its
symbol's name; what is still free gets `Interface.free`, and `FREE_SIZES` are worth a try.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxfuse.facts import declared_size

FREE_SIZES = (4, 16, 32, 64, 80, 96, 128, 256)  # of a symbolic dimension that nothing explains
LAYOUT_CHANGES = ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose")
SELECTING = {("Gather", 1): 0, ("Embedding", 0): 1}  # where ids go in, and the table from whose rows they select
COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Sub")
COMPARED = 16  # elements up to which a constant counts as what the inputs are compared with
UNKNOWN_VOCABULARY = 64  # token ids drawn below this where the embedding table is not found


@dataclass(frozen=True)
class Point:
    """One combination of sizes, and where padding goes in a batch: "none", "left" or "right"."""

    batch: int
    length: int
    past: int
    padding: str = "none"
    sample: int = 0

    @property
    def total(self) -> int:
        """Keys that the last query may see."""
        return self.past + self.length

    def __str__(self) -> str:
        text = f"batch={self.batch} length={self.length} past={self.past}"
        text += f" {self.padding}-padded" if self.padding != "none" else ""
        return f"{text} sample={self.sample}" if self.sample else text


@dataclass(frozen=True)
class Input:
    """A graph input and what it means; `axes` names the size of each dimension: "B", "S", "P", "T", an int or None.

    `compared` are the integers that the model compares it with, a padding token's number say.
    """

    name: str
    dtype: ir.DataType
    dims: tuple[int | str | None, ...]
    role: str
    axes: tuple[str | int | None, ...]
    limit: int = 0
    compared: tuple[int, ...] = ()


@dataclass(frozen=True)
class Interface:
    """The inputs of a model, each with its role; `unknown` are those without a dtype and a rank to draw values by."""

    inputs: tuple[Input, ...]
    unknown: tuple[str, ...] = ()
    free: int = FREE_SIZES[0]

    @classmethod
    def of(cls, model: ir.Model) -> Interface:
        """Classify the inputs of `model`; initializers that are also inputs keep their default and are left out."""
        given = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
        unknown = tuple(value.name for value in given if value.shape is None or value.dtype is None)
        given = [value for value in given if value.name not in unknown]
        inputs = []
        for value in given:
            rows = _rows_indexed_by(value)
            role = _role(value, rows, given)
            dims = tuple(map(declared_size, value.shape))
            axes = tuple(d if isinstance(d, int) else None for d in dims)
            inputs.append(Input(value.name, value.dtype, dims, role, axes, rows or 0, _compared_with(value)))
        symbols = _symbol_meanings(inputs)
        return cls(tuple(replace(i, axes=_axes(i, symbols)) for i in inputs), unknown)

    def has(self, role: str) -> bool:
        """Whether an input plays `role`."""
        return any(i.role == role for i in self.inputs)

    @property
    def has_free_sizes(self) -> bool:
        """Whether a dimension is left that nothing explains."""
        return any(axis is None for i in self.inputs for axis in i.axes)

    def settle(self, point: Point) -> Point:
        """`point` with the sizes that the model fixes put in their place; a size that no input has is 1, or 0 past."""
        fixed: dict[str, int] = {}
        for entry in self.inputs:
            for axis, meaning in enumerate(_role_axes(entry.role, entry.dims)):
                size = entry.dims[axis]
                if isinstance(meaning, str) and isinstance(size, int) and not (meaning == "B" and size == 1):
                    fixed.setdefault(meaning, size)
        used = {axis for i in self.inputs for axis in i.axes if isinstance(axis, str)} | set(fixed)
        tells_past = self.has("offset") or (self.has("buffer") and self.has("positions"))
        if "P" not in used and not tells_past:
            fixed["P"] = 0
        if not used & {"S", "T"}:
            fixed["S"] = 1
        if "B" not in used:
            fixed["B"] = 1
        length = fixed.get("S", point.length)
        past = fixed.get("P", point.past)
        if "T" in fixed and self.has("mask"):
            length, past = (length, fixed["T"] - length) if "S" in fixed else (fixed["T"] - past, past)
        room = min((i.dims[2] for i in self.inputs if i.role == "buffer" and isinstance(i.dims[2], int)), default=None)
        if room is not None and past + length > room:
            length = min(length, room)
            past = room - length
        padding = point.padding if self.has("mask") else "none"
        return Point(fixed.get("B", point.batch), length, past, padding, point.sample)

    def shape(self, entry: Input, point: Point) -> tuple[int, ...]:
        """The shape of `entry` at `point`."""
        sizes = {"B": point.batch, "S": point.length, "P": point.past, "T": point.total}
        return tuple(sizes[a] if isinstance(a, str) else self.free if a is None else a for a in entry.axes)


def _role_axes(role: str, dims: tuple[int | str | None, ...]) -> tuple[str | None, ...]:
    """What each of the dimensions of an input with `role` means, symbolic or fixed; None: nothing said."""
    rank = len(dims)
    if role == "tokens" or (role == "positions" and rank == 2):
        return ("B", "S")[:rank]
    if role == "positions":
        return ("S",)[:rank]
    if role == "mask":
        return ("B", "T")
    if role == "past" and rank == 4 and isinstance(dims[2], int) and not isinstance(dims[1], int):
        return ("B", "P", None, None)  # rows, the heads behind them
    if role == "buffer":
        return ("B", None, None if isinstance(dims[2], int) else "T", None)
    if role == "past" and rank >= 3:
        return ("B", None, "P", None, None)[:rank]
    if role == "embeddings":
        return ("B", "S", None)
    if role == "scores":
        return (*(None,) * (rank - 2), "S", "T")
    return (None,) * rank


def _rows_indexed_by(value: ir.Value) -> int | None:
    """Rows of the table that `value` selects from, following it through casts and reshapes."""
    for node, index in _readers(value):
        if (node.op_type, index) in SELECTING:
            table = node.inputs[SELECTING[node.op_type, index]]
            if table.shape is None and table.const_value is not None:
                return table.const_value.shape[0]
            if table.shape is not None and len(table.shape) == 2 and isinstance(table.shape[0], int):
                return table.shape[0]
    return None


def _compared_with(value: ir.Value) -> tuple[int, ...]:
    """The integers that the integers in `value` are compared with."""
    found: set[int] = set()
    for node, index in _readers(value) if value.dtype.is_integer() else ():
        if node.op_type in COMPARISONS and not node.domain:
            other = node.inputs[1 - index]
            while other.producer() is not None and other.producer().op_type in LAYOUT_CHANGES:
                other = other.producer().inputs[0]
            tensor = ir.convenience.get_const_tensor(other)
            if tensor is not None and tensor.size <= COMPARED:
                numbers = tensor.numpy().astype(np.float64).reshape(-1)
                found.update(int(number) for number in numbers if abs(number) < 2**31)
    return tuple(sorted(found))


def _written_into(value: ir.Value) -> bool:
    """Whether the model puts rows into `value`, in whatever layout, instead of appending to it."""
    return any("Scatter" in node.op_type and index == 0 for node, index in _readers(value))


def _appended_to(value: ir.Value) -> bool:
    """Whether the model joins something to the end of `value`, in whatever layout."""
    return any(node.op_type == "Concat" and index == 0 for node, index in _readers(value))


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """The nodes that read `value`, with the input's index, and those that read it cast or laid out otherwise."""
    queue, seen = [value], set()
    while queue:
        for node, index in queue.pop().uses():
            if node in seen:
                continue
            seen.add(node)
            yield node, index
            if node.op_type in LAYOUT_CHANGES and index == 0:
                queue.extend(node.outputs)


def _role(value: ir.Value, rows: int | None, given: Iterable[ir.Value]) -> str:
    name, rank = value.name.lower(), len(value.shape)
    if value.dtype.is_floating_point():
        if rank == 2 and ("mask" in name or _shaped_like_tokens(value, given)):
            return "mask"
        if rank >= 3 and "mask" in name:
            return "scores"
        if rank == 4 and _written_into(value):
            return "buffer"
        if (rank >= 3 and ("past" in name or "cache" in name)) or (rank == 4 and _appended_to(value)):
            return "past"
        if rank == 3 and "embed" in name:
            return "embeddings"
        return "values"
    if rank == 2 and "mask" in name:
        return "mask"
    if value.dtype != ir.DataType.BOOL:
        if "position" in name or (rank == 1 and "pos" in name):
            return "positions" if rank in (1, 2) else "numbers"
        if rank == 0 and ("pos" in name or "past" in name):
            return "offset"
        if rank == 2 and (rows is not None or "input_ids" in name):
            return "tokens"
    return "mask" if rank == 2 and _as_long_as_nothing_else(value, given) else "numbers"


def _shaped_like_tokens(value: ir.Value, given: Iterable[ir.Value]) -> bool:
    """A float [B, S] beside integer [B, S] token ids: an attention mask whose exporter lost its name."""
    return any(
        other.dtype.is_integer() and other.shape == value.shape and _rows_indexed_by(other) is not None
        for other in given
    )


def _as_long_as_nothing_else(value: ir.Value, given: Iterable[ir.Value]) -> bool:
    """Numbers [B, T] of another length than the tokens [B, S] and the caches: a mask of all tokens by another name."""
    batch, length = map(declared_size, value.shape)
    others = [tuple(map(declared_size, other.shape)) for other in given if other is not value]
    has_own_length = isinstance(length, str) and not any(length in shape for shape in others)
    return has_own_length and isinstance(batch, str) and any(shape[:1] == (batch,) for shape in others)


def _symbol_meanings(inputs: Iterable[Input]) -> dict[str, str]:
    """What each symbol means: from the roles of the inputs that use it, else its name, else its place."""
    meanings: dict[str, str] = {}
    inputs = list(inputs)
    guesses = (
        lambda entry, axis, size: _role_axes(entry.role, entry.dims)[axis],
        lambda entry, axis, size: _meaning_of_name(size.lower()),
        lambda entry, axis, size: _meaning_of_place(len(entry.dims), axis) if entry.role == "values" else None,
    )
    for guess in guesses:
        for entry in inputs:
            for axis, size in enumerate(entry.dims):
                if isinstance(size, str) and size not in meanings:
                    meaning = guess(entry, axis, size)
                    if meaning is not None:
                        meanings[size] = meaning
    return meanings


def _meaning_of_name(name: str) -> str | None:
    if "batch" in name:
        return "B"
    if "total" in name or "+" in name:
        return "T"
    if "past" in name or "pos" in name:
        return "P"
    if "seq" in name or "len" in name:
        return "S"
    return None


def _meaning_of_place(rank: int, axis: int) -> str | None:
    """Activations are [B, S, H] or [B, N, S, D]."""
    if rank >= 2 and axis == 0:
        return "B"
    return "S" if (rank, axis) in ((3, 1), (4, 2)) else None


def _axes(entry: Input, symbols: dict[str, str]) -> tuple[str | int | None, ...]:
    roles = _role_axes(entry.role, entry.dims)
    return tuple(
        size if isinstance(size, int) else meaning or symbols.get(size or "")
        for size, meaning in zip(entry.dims, roles, strict=True)
    )
