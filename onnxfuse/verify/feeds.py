"""Random inputs for a whole model: realistic where a role is known, plain numbers elsewhere.

At every second point numbers and tokens also meet what the model compares them with, and a flag is turned over.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxfuse.verify.interface import UNKNOWN_VOCABULARY, Input, Interface, Point

HIDDEN_SCORE = -1e4  # a masked score: finite in float16, zero after Softmax

BATCHES = (1, 3)
LENGTHS = (1, 4, 17)
PASTS = (0, 5, 64)
SAMPLES = 3  # least number of points, unless they have ENOUGH_TOKENS
ENOUGH_TOKENS = 256  # each is drawn and compared on its own: one long prompt shows as much as several short ones
PADDINGS = ("none", "left", "right")
MEETINGS = 0.5  # of the numbers that the model compares with others, drawn near those


def grid(
    interface: Interface,
    batches: Sequence[int] = BATCHES,
    lengths: Sequence[int] = LENGTHS,
    pasts: Sequence[int] = PASTS,
    paddings: Sequence[str] = PADDINGS,
) -> list[Point]:
    """All different points that `interface` allows, several samples where those are few or draw all flags alike.

    Padding needs a batch of at least two and a token beside it.
    """
    points: dict[Point, None] = {}
    for padding in paddings:
        for batch in batches:
            for length in lengths:
                for past in pasts:
                    point = interface.settle(Point(batch, length, past, padding))
                    room = point.total if padding == "left" else point.length
                    if point.past < 0 or point.length < 1:  # the sizes that the model fixes allow no such point
                        continue
                    if padding != "none" and (point.padding == "none" or room < 2):
                        continue
                    if padding != "none" and point.batch < 2:
                        continue
                    points[point] = None
    few = sum(point.batch * point.length for point in points) < ENOUGH_TOKENS
    least = 2 if _alternates(interface) and len({*map(_is_second, points)}) == 1 else 1
    samples = max(SAMPLES - len(points) + 1 if few else 1, least)
    extra = [replace(p, sample=sample) for p in list(points)[:1] for sample in range(1, samples)]
    return [*points, *extra]


def visible(point: Point) -> np.ndarray:
    """[B, T] bool: a padded batch has no padding in its first row, more in each next one, never in more than half.

    But for odd samples: there padding on the left hides all of the past and the first tokens of the prompt.
    """
    mask = np.ones((point.batch, point.total), dtype=bool)
    for row in range(1, point.batch):
        if point.padding == "left":
            into_the_prompt = point.past + row * point.length // (2 * point.batch)
            mask[row, : into_the_prompt if point.sample % 2 else max(1, row * point.total // (2 * point.batch))] = False
        elif point.padding == "right":
            mask[row, point.total - max(1, row * point.length // (2 * point.batch)) :] = False
    return mask


def _is_second(point: Point) -> bool:
    """Whether this is one of every two points: they differ by one size at a time, or by their sample."""
    return (point.batch + point.length + point.past + point.sample) % 2 == 1


def _alternates(interface: Interface) -> bool:
    """Whether an input is drawn otherwise at every second point."""
    return any(entry.compared or entry.dtype.name == "BOOL" for entry in interface.inputs)


def _meeting(array: np.ndarray, entry: Input, rng: np.random.Generator) -> np.ndarray:
    """`array` with some of its integers near those that the model compares them with; a single one is just that."""
    around = (0,) if array.size == 1 else (-1, 0, 1)
    least, limit = (
        min((0, *entry.compared)),
        entry.limit or (UNKNOWN_VOCABULARY if entry.role == "tokens" else math.inf),
    )
    near = sorted({number + step for number in entry.compared for step in around})
    near = [number for number in near if least <= number < limit]
    if not near:
        return array
    return np.where((rng.random(array.shape) < MEETINGS) | (array.size == 1), rng.choice(near, array.shape), array)


def _fits(tokens: np.ndarray, shape: Sequence[int]) -> bool:
    """Whether an array of this shape has one entry for each of the tokens [B, L], or one for those of every row."""
    return shape[-1] == tokens.shape[1] and (len(shape) < 2 or shape[0] in (1, len(tokens)))


def draw(interface: Interface, point: Point) -> dict[str, np.ndarray]:
    """One value for each input at `point`; the same arguments give the same arrays."""
    keys = visible(point)
    feed = {}
    for entry in interface.inputs:
        name = zlib.crc32(entry.name.encode())
        rng = np.random.default_rng([name, point.batch, point.length, point.past, point.sample])
        shape = interface.shape(entry, point)
        match entry.role:
            case "tokens":
                array = rng.integers(0, entry.limit or UNKNOWN_VOCABULARY, shape)
                array = _meeting(array, entry, rng) if _is_second(point) else array
            case "mask" if not _fits(keys, shape):  # of other tokens than the cache's: an encoder's, say
                array = np.ones(shape)
            case "mask":
                array = np.broadcast_to(keys[: shape[0]], shape)
            case "positions" if not _fits(keys[:, point.past :], shape):
                array = np.broadcast_to(np.arange(shape[-1]), shape)
            case "positions":
                last = (entry.limit or point.total) - 1
                places = np.clip(np.cumsum(keys, axis=1) - 1, 0, last)[:, point.past :]
                array = np.broadcast_to(places[: shape[0]] if len(shape) == 2 else places[0], shape)
            case "offset":
                array = np.array(point.past)
            case "scores":
                rows, columns = shape[-2:]  # the last row sees all, as in a square mask that the model cuts by itself
                hidden = np.arange(columns) > np.arange(rows)[:, None] + columns - rows
                array = np.broadcast_to(np.where(hidden, HIDDEN_SCORE, 0.0), shape)
            case "numbers" if entry.dtype.name == "BOOL":
                array = rng.integers(0, 2, shape) if math.prod(shape) > 1 else np.full(shape, _is_second(point))
            case "numbers":
                array = rng.integers(0, 4, shape)
                array = _meeting(array, entry, rng) if _is_second(point) else array
            case _:
                array = rng.standard_normal(shape, dtype=np.float32)
        feed[entry.name] = np.array(array, dtype=entry.dtype.numpy(), order="C")
    return feed
