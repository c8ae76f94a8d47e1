"""Attention masks by meaning: what a mask lets through is compared with closed forms on several sizes.

A mask is added to the scores (0 where a key is visible, very negative where it is not) or is boolean (True where
visible). The closed forms: every key; causal, aligned to the last key; a sliding window; a padding mask [B, L] that is
an input of the model; and their conjunctions. Query rows that see no key at all are left out: exporters disagree on
them, and no one reads them.

What several sizes cannot show is ruled out in other ways: a mask that reads any other input is not recognised; numbers
written in the subgraph are tried as windows, on sizes beyond them; and a stored mask is compared in its whole extent.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxfuse import dims
from onnxfuse.dims import Size
from onnxfuse.evaluation import Cone, cone
from onnxfuse.facts import Facts
from onnxfuse.ties import OF_TOKENS, interface
from onnxfuse.verify.slices import NUMBERS

# Added to a score, this or less leaves a weight of exactly zero in float32 beside any visible key: -1e4 in bfloat16.
HIDDEN = -9984.0
SETTINGS = 6  # random sizes tried
SMALL_WINDOW = 7  # windows up to this size show in those
UNPADDED = 4  # the kind of row without padding
STATIC_RUNS = 5  # runs where the model leaves no size open: a batch of one meets every kind of padding
WRITTEN = 4  # elements up to which each of a constant may be a window, of larger ones the extremes
TYPES = ("to", "dtype")  # attributes whose integers name a dtype
LARGEST = 1 << 20  # a constant up to this size in the mask's subgraph is taken for a possible window
SCORES = 1 << 24  # scores of the largest mask that is evaluated


@dataclass(frozen=True)
class Mask:
    """What a recognised mask lets through."""

    causal: bool = False
    window: int = 0
    padding: ir.Value | None = None

    def __and__(self, other: Mask) -> Mask | None:
        """Both masks together, None where one operator cannot say it."""
        if self.padding is not None and other.padding is not None and self.padding is not other.padding:
            return None
        windows = [w for w in (self.window, other.window) if w]
        return Mask(self.causal or other.causal, min(windows, default=0), self.padding or other.padding)

    def visible(self, batch: int, queries: int, keys: int, padding: np.ndarray | None) -> np.ndarray:
        """The closed form: [B, S, L] bool."""
        offset = np.arange(keys)[None, :] - np.arange(queries)[:, None] - (keys - queries)
        seen = np.ones((queries, keys), dtype=bool)
        if self.causal:
            seen &= offset <= 0
        if self.window:
            seen &= offset > -self.window
        seen = np.broadcast_to(seen, (batch, queries, keys))
        return seen if padding is None else seen & (padding != 0)[:, None, :]


def recognise(mask: ir.Value, sizes: tuple[Size, Size, Size], facts: Facts) -> Mask | None:
    """The closed form of `mask` [B|1, N|1, S|1, L] (or fewer leading axes), or None: then it is passed on as it is.

    `sizes` are B, S and L of the scores that it is added to.
    """
    known = facts.memory.setdefault(recognise, {})
    if (mask, sizes) not in known:
        known[mask, sizes] = _recognise(mask, sizes, facts)
    return known[mask, sizes]


def _recognise(mask: ir.Value, sizes: tuple[Size, Size, Size], facts: Facts) -> Mask | None:
    if mask.is_graph_input():
        return None
    trial = _trial(mask, sizes, facts)
    return None if trial is None else _fit(trial)


def tells_rows(seen: ir.Value, closed: Mask, sizes: tuple[Size, Size, Size], facts: Facts) -> bool:
    """Whether `seen` [B|1, 1, S|1, 1] or [B|1, S|1, 1, 1] is True for just the queries that `closed` shows a key."""
    trial = _trial(seen, sizes, facts)
    if trial is None or trial.padding is not closed.padding:
        return False
    observations = _observed(trial)
    for queries, keys, told, padding in observations or ():
        rows = told.reshape(told.shape[0], -1)
        batch = len(rows) if padding is None else len(padding)
        expected = closed.visible(batch, queries, keys, padding).any(axis=-1)
        if rows.shape[0] not in (1, batch) or rows.shape[1] not in (1, queries) or (rows != expected).any():
            return False
    return bool(observations)


def _trial(mask: ir.Value, sizes: tuple[Size, Size, Size], facts: Facts) -> _Trial | None:
    """What runs the mask's subgraph. None where it depends on anything but sizes and one input, its padding [B, L]."""
    behind = cone(mask, facts)
    if behind is None:
        return None
    scores = set().union(*map(dims.symbols, sizes))
    if (behind.symbols() - scores) & {dims.value_symbol(value.name) for value in facts.model.graph.inputs}:
        return None  # an integer that is no size
    decisive = [value for value in behind.inputs if _is_read(value, behind)]
    if len(decisive) > 1 or any(facts.rank(value) != 2 for value in decisive):
        return None
    return _Trial(behind, *sizes, next(iter(decisive), None), facts)


def _is_read(value: ir.Value, behind: Cone) -> bool:
    """Whether the content of an input counts, not only its dtype."""
    reading = (use for use in value.uses() if use.node in behind.piece.nodes)
    return value is behind.target or any(use.node.op_type != "CastLike" or use.idx == 0 for use in reading)


@dataclass
class _Trial:
    """Runs a mask's subgraph on sizes, with `padding` fed as a 0/1 mask."""

    behind: Cone
    batch: Size
    queries: Size
    keys: Size
    padding: ir.Value | None
    facts: Facts

    def settings(self) -> Iterator[tuple[dict[str, int], int]]:
        """Assignments of all sizes, and how many keys the subgraph must give for them, 0 if it may refuse.

        Small random ones, an empty past, one beyond every possible window, and those that show all of what is stored.
        """
        free = self.behind.symbols() | dims.symbols(self.batch) | dims.symbols(self.queries) | dims.symbols(self.keys)
        names = sorted(free - set(self._tied()))
        if not names:
            yield from [(self._with_tied({}), 0)] * STATIC_RUNS
            return
        draw = random.Random(0)
        past_only = self.past_only
        small = [{n: draw.choice((1, 2, 3, 4, 5, 6, 7)) for n in names} for _ in range(SETTINGS)]
        settings = [*small, {**small[0], **dict.fromkeys(past_only, 0)}]
        open_names = past_only or sorted(dims.symbols(self.queries) & set(names))
        for size in sorted(self._candidate_windows()):
            if open_names:
                large = {n: 2 for n in names if n not in open_names}
                settings.append({**large, **dict.fromkeys(open_names, size + 3)})
        for sizes in settings:
            yield self._with_tied(sizes), 0
        for rows, columns, regular in sorted(self._stored()):
            keys = columns if dims.symbols(self.keys) else self.keys
            for queries in (2,) if regular or not past_only else (2, min(rows, columns)):
                yield self._reaching(queries, columns, names), 0 if regular else keys

    def _reaching(self, queries: int, keys: int, names: list[str]) -> dict[str, int]:
        """The assignment that gives so many queries and keys, as far as they are open."""
        own, past_only = dims.symbols(self.queries) & set(names), self.past_only
        sizes = {**dict.fromkeys(names, 1), **dict.fromkeys(own, queries if past_only else keys)}
        sizes.update(dict.fromkeys(past_only, 0))
        past = max(keys - dims.evaluate(self.keys, self._with_tied(sizes)), 0)
        tried = ({**sizes, **dict.fromkeys(longer, past)} for longer in (past_only[:1], past_only))
        found = [self._with_tied(one) for one in tried]
        return next((one for one in found if dims.evaluate(self.keys, one) == keys), found[0])

    def _stored(self) -> set[tuple[int, int, bool]]:
        """Extents of the constants that sizes cut: rows, columns, and whether their entries follow from the first two.

        A line of entries may belong to the rows or to the columns.
        """
        found = set()
        for value in self.behind.constants:
            tensor = self.facts.tensor(value)
            large = [size for size in tensor.shape if size > SMALL_WINDOW]
            if large:
                found.add((*(large * 2)[-2:], len(large) == 1 and len(set(_steps(tensor.numpy()))) == 1))
        return found

    @cached_property
    def of_tokens(self) -> bool:
        """Whether the padding is not 0 or 1 by its role, but tokens, of which one says that there is none."""
        of_tokens = {entry.name for entry in interface(self.facts).inputs if entry.role in OF_TOKENS}
        return self.padding is not None and self.padding.name in of_tokens

    @cached_property
    def past_only(self) -> list[str]:
        """The open sizes that lengthen the keys alone."""
        return sorted(dims.symbols(self.keys) - dims.symbols(self.queries) - set(self._tied()))

    def _tied(self) -> dict[str, Size]:
        """Symbols that exporters name apart although they are one size: those of the padding mask and of the caches.

        The rows of a padding mask [B, L] are B and its length is L; every layer's cache holds the same P tokens, so
        that a mask made for the first layer serves the others.
        """
        scores = dims.symbols(self.batch) | dims.symbols(self.queries) | dims.symbols(self.keys)
        tied: dict[str, Size] = {}
        past = self.keys - self.queries
        if dims.symbols(past):
            tied |= dict.fromkeys((self.behind.symbols() & _cached_lengths(self.facts)) - scores, past)
        if self.padding is not None:
            own = zip(self.facts.shape(self.padding), (self.batch, self.keys), strict=True)
            tied |= {name: size for dim, size in own for name in dims.symbols(dim) - scores}
        return tied

    def _with_tied(self, sizes: dict[str, int]) -> dict[str, int]:
        return {**sizes, **{name: dims.evaluate(size, sizes) for name, size in self._tied().items()}}

    def _candidate_windows(self) -> set[int]:
        """Numbers written in the subgraph: one of them may be a window, to be seen only beyond that size.

        It may be one between two integers, or the reciprocal of one.
        """
        magnitudes = {abs(number) for number in self._numbers()} - {0}
        sizes = (size for number in magnitudes for size in (number, 1 / number) if size <= LARGEST)
        return {near for size in sizes for near in (math.floor(size), math.ceil(size)) if near > SMALL_WINDOW}

    def _numbers(self) -> Iterator[float]:
        """The numbers in constants, attributes and known sizes.

        Not those that hide a key, unless a past is open: where all sizes grow together, few can be tried.
        """
        for array in self._arrays():
            entries = array.astype(np.float64).reshape(-1)
            if array.size > WRITTEN:
                entries = np.array([entries.min(), entries.max()])
            hides = (entries <= HIDDEN) & (array.dtype.kind not in "iu") & (not self.past_only)
            yield from entries[np.isfinite(entries) & ~hides].tolist()

    def _arrays(self) -> Iterator[np.ndarray]:
        """Whatever holds numbers, but for places in turn and flags."""
        for value in self.behind.constants:
            if self.facts.dtype(value).is_integer() or self.facts.dtype(value).is_floating_point():
                array = self.facts.tensor(value).numpy()
                if array.size <= WRITTEN or max(array.shape) < array.size or set(_steps(array)) != {1}:
                    yield array
        for value in self.behind.piece.known:
            yield np.array([entry for entry in self.facts.content(value) if isinstance(entry, int)])
        for node in self.behind.piece.nodes:
            for name, attribute in node.attributes.items():
                if attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.value.numpy()
                elif attribute.type in NUMBERS and name not in TYPES:
                    yield np.array(attribute.value)

    def windows(self) -> list[int]:
        """Windows to compare with, none first: with one, only a size beyond it tells it apart."""
        written = self._candidate_windows()
        return [0, *range(1, SMALL_WINDOW + 1), *sorted(written | {w + 1 for w in written})]

    def run(self, sizes: Mapping[str, int], seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The mask [B, N, S, L] as booleans (True: visible), and the padding that was fed."""
        draw = np.random.default_rng(seed)
        feeds, padding = {}, None
        for value in self.behind.inputs:
            shape = tuple(dims.evaluate(s, sizes) for s in self.facts.shape(value))
            dtype = self.facts.dtype(value).numpy()
            if value is self.padding:
                # of the larger settings, which come last, every key counts
                padding = _paddings(shape, draw, first=seed if seed <= SETTINGS else UNPADDED)
                shown = draw.integers(1, 9, size=shape) if self.of_tokens else 1
                feeds[value.name] = (padding * shown).astype(dtype)
            else:
                feeds[value.name] = draw.integers(0, 5, size=shape).astype(dtype)
        return visibility(self.behind.run(sizes, feeds)), padding


def _cached_lengths(facts: Facts) -> set[str]:
    """The symbols for P of the inputs [B, K, P, D] and [B, P, K, D] that are caches: floats, only P and B open."""
    found: set[str] = set()
    for value in facts.model.graph.inputs:
        shape, dtype = facts.shape(value), facts.dtype(value)
        if shape is not None and len(shape) == 4 and dtype is not None and dtype.is_floating_point():
            lengths = [size for size in shape[1:] if not isinstance(size, int)]
            if len(lengths) == 1 and isinstance(shape[3], int):
                found |= dims.symbols(lengths[0])
    return found


def _steps(line: np.ndarray) -> np.ndarray:
    """The differences of neighbouring entries."""
    return np.diff(line.reshape(-1).astype(np.float64))


def _paddings(shape: tuple[int, ...], draw: np.random.Generator, first: int) -> np.ndarray:
    """Rows padded on the left, on the right, with holes, but for one entry, and not at all, in turn from kind `first`.

    Each row keeps at least one entry.
    """
    rows, length = shape
    mask = np.ones(shape, dtype=np.int64)
    for row in range(rows):
        kind, cut = (first + row) % 5, int(draw.integers(0, max(length, 1)))
        if kind == 0:
            mask[row, :cut] = 0
        elif kind == 1:
            mask[row, length - cut :] = 0
        elif kind == 2:
            mask[row] = draw.integers(0, 2, size=length)
            mask[row, cut : cut + 1] = 1
        elif kind == 3:
            mask[row] = np.arange(length) == cut
    return mask


def visibility(mask: np.ndarray) -> np.ndarray:
    """A mask as booleans. Raises ValueError for one that does more than hide keys."""
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape) if mask.ndim < 4 else mask
    if mask.dtype == bool:
        return mask
    if not ((mask == 0) | (mask <= HIDDEN)).all():
        raise ValueError("the mask adds values that neither hide a key nor leave it alone")
    return mask == 0


def _fit(trial: _Trial) -> Mask | None:
    """The closed form that agrees with the subgraph on all settings."""
    observations: list[tuple[np.ndarray, np.ndarray | None]] = []
    for queries, keys, seen, padding in _observed(trial) or ():
        if seen.shape[2] not in (1, queries) or seen.shape[3] not in (1, keys):
            return None
        batch = max(seen.shape[0], 1 if padding is None else padding.shape[0])
        if padding is not None and seen.shape[0] not in (1, padding.shape[0]):
            return None
        observations.append((np.broadcast_to(seen, (batch, seen.shape[1], queries, keys)), padding))
    if not observations:
        return None
    stored = {int(np.count_nonzero(seen[0, 0, -1])) for seen, _ in observations if seen.size}
    windows = dict.fromkeys((*trial.windows(), *sorted(stored)))
    forms = (Mask(causal, window, trial.padding) for window in windows for causal in (False, True))
    return next((form for form in forms if all(_agrees(form, *o) for o in observations)), None)


def _observed(trial: _Trial) -> list[tuple[int, int, np.ndarray, np.ndarray | None]] | None:
    """S, L, what the subgraph gives and the padding given to it, for each setting; None if it cannot be judged."""
    observations = []
    for seed, (sizes, demanded) in enumerate(trial.settings()):
        try:
            queries, keys = dims.evaluate(trial.queries, sizes), dims.evaluate(trial.keys, sizes)
            if queries * keys > SCORES or demanded not in (0, keys):
                return None  # a window that cannot be tried cannot be ruled out
            seen, padding = trial.run(sizes, seed)
            if padding is not None and padding.shape[1] != keys:
                return None
            observations.append((queries, keys, seen, padding))
        except RuntimeError:
            if demanded:
                return None  # what is stored is not seen as a whole
            continue  # these sizes do not fit together
        except (KeyError, ValueError):
            return None  # a size that cannot be chosen, or a mask that does more than hide keys
    return observations if len(observations) >= 3 else None


def _agrees(form: Mask, seen: np.ndarray, padding: np.ndarray | None) -> bool:
    batch, _, queries, keys = seen.shape
    expected = form.visible(batch, queries, keys, padding)
    readable = expected.any(axis=-1)  # a row that sees nothing is undefined
    return bool((seen == expected[:, None]).transpose(0, 2, 1, 3)[readable].all())
