"""Running a match before and after on a few sizes.

The reference is the old graph computed in a wider dtype where ONNX Runtime can, without its optimisations. The new
graph may be twice as far from it as the old graph is, plus the fusion's own tolerance: a kernel that rounds less often
than the graph is not punished for being more exact. So the old graph need only run as it is where the new one is not
within the fusion's own tolerance. Rows of padding tokens, which see no key, are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxfuse import dims, operators
from onnxfuse.derived import DerivedTensor
from onnxfuse.errors import UsageError
from onnxfuse.splice import Candidate
from onnxfuse.verify.compare import Difference, defined, difference
from onnxfuse.verify.interface import Point
from onnxfuse.verify.sessions import Session, first_line
from onnxfuse.verify.shrink import Shrinking
from onnxfuse.verify.slices import Slice, Unsliceable

if TYPE_CHECKING:
    from onnxfuse.verify.match import MatchVerifier

POINTS = (
    Point(2, 5, 0),
    Point(2, 5, 7, "left", sample=1),  # padding just before a token of the prompt, where the smallest window shows it
    Point(1, 4, 3),
    Point(3, 1, 9, "left"),
    Point(2, 6, 0, "right"),
)
SCALES = (1.0, 0.03, 1.0, 4.0, 0.3)  # of activations, one a point: small ones show an epsilon, large ones a saturation
UNKNOWN_SIZE = 4  # of a dimension that no input of the model tells
LONGEST_PROMPT = 512  # tokens drawn to show a sliding window where there is no cache to fill
WIDENINGS = (
    {ir.DataType.FLOAT16: ir.DataType.FLOAT, ir.DataType.BFLOAT16: ir.DataType.FLOAT},
    {ir.DataType.FLOAT: ir.DataType.DOUBLE},
)
UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
ROUNDINGS = 64  # accepted where a fusion states no tolerance: some ten operators, with a margin of six

WIDEST = 1 << 27  # bytes of one intermediate up to which the old graph is run in the wider dtype too

Arrays = dict[ir.Value, np.ndarray]
Dtypes = Mapping[ir.DataType, ir.DataType]
AS_THEY_ARE: Dtypes = MappingProxyType({})


@dataclass(frozen=True)
class Verdict:
    """`reason` is None if the structure may be fused; `points` sizes were compared, `max_rel` is the worst result."""

    reason: str | None
    points: int = 0
    max_rel: float = 0.0


class _Sizes(dict):
    def __missing__(self, name: str) -> int:
        return UNKNOWN_SIZE


class Trial:
    """One candidate, its old and its new graph, to be run at several points."""

    def __init__(self, verifier: MatchVerifier, candidate: Candidate, before: Slice, after: Slice) -> None:
        self.verifier = verifier
        self.facts = verifier.facts
        self.interface = verifier.interface
        self.candidate = candidate
        self.before = before
        self.after = after
        self.functions = [*self.facts.model.functions.values(), *candidate.functions]
        self.shrinking = Shrinking.of(before, after, self.functions)

    def points(self) -> list[Point]:
        """The sizes to try, those that the model fixes put in their place."""
        windows = {node.attributes["window"].value for node in self.candidate.new_nodes if "window" in node.attributes}
        beyond = [
            p for w in windows if w > 0 for p in (Point(1, 1, w + 3), Point(1, w + 3, 0)) if p.length <= LONGEST_PROMPT
        ]
        settled = [self.interface.settle(point) for point in (*POINTS, *beyond)]
        possible = [p if p.batch > 1 else replace(p, padding="none") for p in settled if p.past >= 0 and p.length > 0]
        different = list(dict.fromkeys(possible))
        return different if len(different) > 1 else [*different, *(replace(p, sample=1) for p in different)]

    def verdict(self) -> Verdict:
        """Run everything and compare."""
        old = _Old(self)
        if old.reference is None and old.session is None:
            return Verdict(f"cannot be verified: before the rewrite, {old.refusal}")
        try:
            sessions = {"as function bodies": self._new()}
            if self.verifier.library is not None:
                sessions["with the library"] = self._new(self.verifier.library)
        except UsageError as error:
            return Verdict(str(error))
        compared, worst, failure = 0, 0.0, ""
        for index, point in enumerate(self.points()):
            sizes, feed = self._sizes(point)
            arrays = self._draw(sizes, feed, SCALES[index % len(SCALES)], index)
            try:
                expected = old.expected(arrays, self._largest(sizes))
            except Exception as error:  # ONNX Runtime raises a dozen unrelated types
                failure = first_line(error)
                continue
            masked = any(self.verifier.roles.get(value) == "mask" for value in arrays)
            for way, (session, wide) in sessions.items():
                try:
                    new = self.run(session, self.after, arrays, wide)
                except Exception as error:
                    return Verdict(f"the new nodes fail at {point}, {way}: {first_line(error)}")
                reason, found = self._compare(expected, new, wide, point if masked else replace(point, padding="none"))
                worst = max(worst, found)
                if reason is not None:
                    return Verdict(f"{reason} at {point}, {way}", compared, worst)
            compared += 1
        if not compared:
            return Verdict(f"cannot be verified: the old nodes run on no inputs of these shapes: {failure}")
        return Verdict(None, compared, worst)

    def session(
        self, piece: Slice, widen: Dtypes = AS_THEY_ARE, kept: str | None = None, library: Path | None = None
    ) -> Session:
        """A session for one of the two slices, computed in wider dtypes where `widen` says so."""
        model = piece.model(self.functions, widen, self.shrinking.size, kept)
        return Session(model, provider=self.verifier.provider, library=library)

    def _new(self, library: Path | None = None) -> tuple[Session, Dtypes]:
        """A session for the new graph, and the wider dtypes that it computes in.

        ONNX Runtime's CPU provider has few standard operators in bfloat16: where it lacks one, those are computed in
        float32, and the project's own in bfloat16 all the same.
        """
        try:
            return self.session(self.after, library=library), AS_THEY_ARE
        except UsageError:
            values = (*self.after.leaves, *self.after.outputs)
            if all(self.facts.dtype(value) != ir.DataType.BFLOAT16 for value in values):
                raise
        halves = WIDENINGS[0]
        return self.session(self.after, halves, kept=operators.OWN, library=library), halves

    def _sizes(self, point: Point) -> tuple[_Sizes, dict[str, np.ndarray]]:
        """What the symbols stand for at `point`, and a value for every input of the model."""
        feed = self.verifier.feed(point)
        sizes = _Sizes()
        for entry in self.interface.inputs:
            for axis, size in enumerate(self.interface.shape(entry, point)):
                sizes[entry.dims[axis] or f"{entry.name}:{axis}"] = size
            if feed[entry.name].size == 1 and feed[entry.name].dtype.kind == "i":
                sizes[dims.value_symbol(entry.name)] = int(feed[entry.name].reshape(-1)[0])
        sizes.update(self._demanded)
        return sizes, feed

    @cached_property
    def _demanded(self) -> dict[str, int]:
        """Sizes that only the matrix products tell: behind an expert's gathered rows, shapes are unknown."""
        found = {}
        for node in self.before.nodes:
            if node.op_type == "MatMul" and not node.domain:
                rows, columns = (self.facts.shape(value) for value in node.inputs)
                if rows and columns and len(columns) > 1 and isinstance(columns[-2], int):
                    found |= {
                        name: columns[-2] for name in dims.symbols(rows[-1] or 0) if rows[-1] == dims.symbol(name)
                    }
        return found

    def _largest(self, sizes: _Sizes) -> int:
        """Bytes of the largest value that the old nodes compute, in the widest dtype."""
        shapes = [self.facts.shape(value) for node in self.before.nodes for value in node.outputs]
        known = [shape for shape in shapes if shape is not None and None not in shape]
        counts = (math.prod(dims.evaluate(size, sizes) for size in shape) for shape in known)
        return 8 * max(counts, default=0)

    def _draw(self, sizes: _Sizes, feed: dict[str, np.ndarray], scale: float, seed: int) -> Arrays:
        """Arrays for all leaves."""
        rng = np.random.default_rng(seed)
        arrays: Arrays = {}
        inputs = list(dict.fromkeys((*self.before.inputs, *self.after.inputs)))
        for value in inputs:
            if isinstance(self.facts.tensor(value), DerivedTensor):
                continue
            if self.verifier.has_meaning(value):
                arrays[value] = feed[value.name]
            else:
                arrays[value] = self._random(value, sizes, scale, rng)
        for value in inputs:
            tensor = self.facts.tensor(value)
            if isinstance(tensor, DerivedTensor):
                arrays[value] = tensor.function(arrays[tensor.source])
        for value in (*self.before.known, *self.after.known):
            fact = self.facts.fact(value)
            entries = [dims.evaluate(entry, sizes) for entry in fact.integers()]
            arrays[value] = np.array(entries, dtype=fact.dtype.numpy()).reshape(fact.content.shape)
        return arrays

    def _random(self, value: ir.Value, sizes: _Sizes, scale: float, rng: np.random.Generator) -> np.ndarray:
        dtype, shape = self.facts.dtype(value), self.facts.shape(value)
        if dtype is None or shape is None or None in shape:
            raise Unsliceable(f"dtype and shape of {value.name!r} are unknown")
        shape = tuple(self.shrinking.size(dims.evaluate(size, sizes)) for size in shape)
        if dtype == ir.DataType.BOOL:
            return rng.random(shape) < 0.5
        if not dtype.is_floating_point():
            return rng.integers(0, 4, shape).astype(dtype.numpy())
        array = rng.standard_normal(shape, dtype=np.float32)
        if not self.facts.is_constant(value):
            array *= np.float32(scale)
        elif len(shape) == 1:
            array = 1 + np.float32(0.3) * array  # a gain, or a bias
        elif len(shape) > 1:
            array /= np.float32(np.sqrt(max(shape[-2], 1)))  # a product keeps the size of its input
        return array.astype(dtype.numpy())

    def run(
        self,
        session: Session,
        piece: Slice,
        arrays: Arrays,
        wide: Dtypes = AS_THEY_ARE,
    ) -> list[np.ndarray]:
        """The outputs of a slice for the leaves' values."""
        feed = {}
        for name, value in zip(session.input_names, (*piece.inputs, *piece.known), strict=True):
            dtype = wide.get(self.facts.dtype(value))
            feed[name] = arrays[value] if dtype is None else arrays[value].astype(dtype.numpy())
        results = session.run(feed)
        return [results[name] for name in session.outputs]

    def _compare(self, expected: _Expected, new: Sequence, wide: Dtypes, point: Point) -> tuple[str | None, float]:
        """What is wrong with the outputs `new`, None if nothing is, and the largest difference."""
        worst = 0.0
        for index, value in enumerate(self.candidate.outputs):
            reference = expected.outputs[index]
            dtype = self.facts.dtype(value)
            if dtype is not None and new[index].dtype != wide.get(dtype, dtype).numpy():
                return f"{value.name!r} was {operators.dtype_name(dtype)} and becomes {new[index].dtype}", np.inf
            counts = defined(reference.shape, point, self._token_axis(value))
            found = difference(reference, new[index], counts)
            worst = max(worst, found.max_rel)
            allowed = self._tolerance(value)
            if found.max_rel > allowed:
                allowed += 2 * expected.noise(index, counts)
            if found.max_rel > allowed:
                return f"{value.name!r} differs {_by(reference, new[index], found)}, {allowed:.1e} is allowed,", worst
        return None, worst

    def _token_axis(self, value: ir.Value) -> int | None:
        """The first axis of `value` after the batch whose size depends on the input's sizes."""
        shape = self.facts.shape(value) or ()
        return next((axis for axis, size in enumerate(shape) if axis > 0 and not isinstance(size, int)), None)

    def _tolerance(self, value: ir.Value) -> float:
        """By the coarsest dtype that goes in or comes out: a result is not known better than its operands are."""
        dtypes = {operators.dtype_name(self.facts.dtype(leaf)) for leaf in (value, *self.before.inputs)}
        dtype = max(dtypes & set(UNIT_ROUNDOFF), key=UNIT_ROUNDOFF.get, default=None)
        stated = self.candidate.fusion.tolerance.get(dtype)
        return ROUNDINGS * UNIT_ROUNDOFF.get(dtype, 0.0) if stated is None else stated


class _Old:
    """The old graph: `reference` computes it in the next wider dtype where ONNX Runtime can, `session` as it is."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.refusal = ""
        self.reference, self._wide = self._widened()

    def _widened(self) -> tuple[Session | None, Dtypes]:
        piece = self.trial.before
        dtypes = {piece.facts.dtype(value) for value in (*piece.leaves, *piece.outputs)}
        for widening in WIDENINGS:
            if dtypes & set(widening):
                try:
                    return self.trial.session(piece, widening), widening
                except (UsageError, Unsliceable):
                    return None, AS_THEY_ARE
        return None, AS_THEY_ARE

    @cached_property
    def session(self) -> Session | None:
        """None, and `refusal`, where ONNX Runtime does not load the graph as it is."""
        try:
            return self.trial.session(self.trial.before)
        except UsageError as error:
            self.refusal = str(error)
            return None

    def expected(self, arrays: Arrays, largest: int) -> _Expected:
        """What the new graph is compared with; `largest` bytes is its largest value. Raises what a run does."""
        if self.reference is not None and (largest <= WIDEST or self.session is None):
            try:
                exact = self.trial.run(self.reference, self.trial.before, arrays, self._wide)
                return _Expected(exact, lambda: self._rounded(arrays))
            except Exception:  # a dozen unrelated types: no kernel in the wider dtype, say; then as it is
                if self.session is None:
                    raise
        return _Expected(self.trial.run(self.session, self.trial.before, arrays), lambda: None)

    def _rounded(self, arrays: Arrays) -> list[np.ndarray] | None:
        try:
            return self.trial.run(self.session, self.trial.before, arrays) if self.session is not None else None
        except Exception:  # as above; then nothing is known about the old graph's own error
            return None


@dataclass
class _Expected:
    """Outputs of the old graph; `rounded` computes them as that graph rounds them, if that makes a difference."""

    outputs: list[np.ndarray]
    rounded: Callable[[], list[np.ndarray] | None]

    @cached_property
    def _rounded(self) -> list[np.ndarray] | None:
        return self.rounded()

    def noise(self, index: int, counts: np.ndarray | None) -> float:
        """How far the old graph's own output is from the exact one; 0 where that cannot be told."""
        if self._rounded is None:
            return 0.0
        found = difference(self.outputs[index], self._rounded[index], counts).max_rel
        return found if np.isfinite(found) else 0.0


def _by(reference: np.ndarray, actual: np.ndarray, found: Difference) -> str:
    if reference.shape != actual.shape:
        return f"in shape, {list(actual.shape)} for {list(reference.shape)}"
    return f"by {found.max_rel:.1e} relative at {list(found.worst)}"
