"""The rewrite as one call: load, normalise, match, verify, check, write, report."""

from __future__ import annotations

import difflib
import gc
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxfuse import catalog, model_io, runtime, soundness
from onnxfuse.blocks import group_blocks
from onnxfuse.errors import Rejected, UsageError
from onnxfuse.explain import Event, Fused, NearMiss, Refused
from onnxfuse.fusion import Fusion
from onnxfuse.kernel_layout import to_kernel_layout
from onnxfuse.kv_cache import share_cache
from onnxfuse.narrow import FORMS, Narrowed, narrow
from onnxfuse.normalise import normalise, tidy
from onnxfuse.report import Report, Verification, fused_count, node_count
from onnxfuse.rewriter import rewrite
from onnxfuse.splice import Candidate
from onnxfuse.verify.bisect import guilty
from onnxfuse.verify.match import MatchVerifier
from onnxfuse.verify.model import validate
from onnxfuse.verify.rounding import measure

STRICT = False  # whether a fusion that breaks down raises FusionError, as in the tests, or refuses its match
OLDEST_OPSET = 13  # of the function bodies
TARGETS = ("cpu", "cuda")
LEVELS = ("op", "block")
KV_CACHES = ("concat", "shared")
VERIFICATIONS = ("match", "model", "none")
WEIGHTS = (*model_io.WEIGHTS, *FORMS)

Source = str | os.PathLike | onnx.ModelProto | ir.Model
Fusions = str | Fusion | Iterable[str | Fusion]
Progress = Callable[[str, int, int | None], None]  # what is done, how much of it, of how much (None: unknown)


@dataclass(frozen=True)
class Result:
    """The rewritten model and what happened on the way; `events` is every fusion, refusal and near miss."""

    model: ir.Model
    report: Report
    events: tuple[Event, ...]


def optimize(
    model: Source,
    output: str | os.PathLike | None = None,
    *,
    target: str = "cpu",
    fusions: Fusions | None = None,
    skip: Fusions = (),
    require: Fusions = (),
    level: str = "op",
    kv_cache: str = "concat",
    verify: str = "match",
    weights: str = "copy",
    progress: Progress | None = None,
) -> Result:
    """Fuse `model` and prove the result equal.

    Parameters
    ----------
    model : path, onnx.ModelProto or onnx_ir.Model
        Left as it is.
    output : path, optional
        Where to write the result; without it the result is only returned.
    target : "cpu" | "cuda"
        What the result shall run on.
    fusions, skip : names or Fusions, or one of them, optional
        Only these fusions; all but those. `onnxfuse list` names them.
    require : names or Fusions, or one of them
        Fusions that must have been applied.
    level : "op" | "block"
        How much one fused node comprises: an operator, or half a layer (see `onnxfuse.blocks`).
    kv_cache : "concat" | "shared"
        The interface of the key-value cache: the one the model was exported with, or one buffer that past and present
        share (see `onnxfuse.kv_cache`).
    verify : "match" | "model" | "none"
        Run every rewritten piece before and after it is rewritten; besides that compare the whole models; or neither.
    weights : "copy" | "reference" | "bf16" | "int8"
        What happens to weights in external data files, see `model_io.save`; or matrices are rounded to bfloat16, where
        the model computes in float32, or to 8 bits after the fusions are proven equal (see `onnxfuse.narrow`). Then
        `verify` "model" also measures the error of that.
    progress : callable(stage, done, total), optional

    Raises
    ------
    UsageError
        The input is unreadable or an option is impossible.
    Rejected
        The whole model differs, or a required fusion is absent; nothing is written.

    Examples
    --------
    >>> result = onnxfuse.optimize("model.onnx", output="fused.onnx")  # doctest: +SKIP
    >>> result.report.fused  # doctest: +SKIP
    {'Attention': 2, 'GatedMLP': 2, 'RMSNorm': 1, 'RotaryEmbedding': 4, 'SkipRMSNorm': 4}
    """
    for name, value, known in (
        ("target", target, TARGETS),
        ("level", level, LEVELS),
        ("kv_cache", kv_cache, KV_CACHES),
        ("verify", verify, VERIFICATIONS),
        ("weights", weights, WEIGHTS),
    ):
        if value not in known:
            raise UsageError(f"{name} is {value!r}: expected {' or '.join(map(repr, known))}")
    if weights in FORMS and target != "cpu":
        raise UsageError(
            f"weights is {weights!r} and target is {target!r}: activations times narrower weights are the CPU's, "
            "expected target 'cpu'; for a GPU export the model in bfloat16 or float16"
        )
    chosen = choose(fusions, skip)
    required = choose(require)
    left_out = sorted(fusion.name for fusion in set(required) - set(chosen))
    if left_out:
        raise UsageError(f"{', '.join(left_out)} is required, and left out by the choice of fusions")
    check_level(required, level)
    run = _Run(model, output, target, level, kv_cache, verify, weights, progress or (lambda stage, done, total: None))
    return run.optimize(chosen, [fusion.name for fusion in required])


def explain(model: Source, *, level: str = "op", verify: str = "match", progress: Progress | None = None) -> Result:
    """What `optimize` would do to `model`, and why it leaves the rest alone: see `Result.events`.

    Parameters
    ----------
    model, level, verify, progress
        As for `optimize`.
    """
    return optimize(model, level=level, verify=verify, progress=progress)


def choose(fusions: Fusions | None = None, skip: Fusions = ()) -> tuple[Fusion, ...]:
    """The fusions of these names (None: all) without those to skip. Raises UsageError for an unknown name."""
    skipped = {_known(name) for name in _each(skip)}
    wanted = catalog.fusions() if fusions is None else {_known(name): None for name in _each(fusions)}
    return tuple(fusion for fusion in wanted if fusion not in skipped)


def of_level(fusions: Iterable[Fusion], level: str) -> tuple[Fusion, ...]:
    """Those that are tried at `level`."""
    return tuple(fusion for fusion in fusions if level == "block" or fusion.stage != "block")


def check_level(fusions: Sequence[Fusion], level: str) -> None:
    """Raise UsageError unless all of them are tried at `level`."""
    beyond = [fusion.name for fusion in fusions if fusion not in of_level(fusions, level)]
    if beyond:
        raise UsageError(f"{', '.join(beyond)}: only applied at level 'block', and the level is {level!r}")


def _each(fusions: Fusions) -> Iterable[str | Fusion]:
    return (fusions,) if isinstance(fusions, str | Fusion) else fusions


def _known(name: str | Fusion) -> Fusion:
    if isinstance(name, Fusion):
        return name
    by_name = {fusion.name: fusion for fusion in catalog.fusions()}
    if name not in by_name:
        close = difflib.get_close_matches(name, by_name, 1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(by_name)}"
        raise UsageError(f"there is no fusion {name!r}: {hint}")
    return by_name[name]


class _Run:
    """One model on its way through `optimize`."""

    def __init__(
        self,
        source: Source,
        output: str | os.PathLike | None,
        target: str,
        level: str,
        kv_cache: str,
        verify: str,
        weights: str,
        progress: Progress,
    ) -> None:
        self.source = source
        self.output = None if output is None else Path(output)
        self.target = target
        self.level = level
        self.kv_cache = kv_cache
        self.verify = verify
        self.weights = weights
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self.library = _library() if target == "cpu" else None
        self.narrows = weights in FORMS
        self.narrowed: Narrowed | None = None

    def optimize(self, fusions: Sequence[Fusion], required: Sequence[str]) -> Result:
        with self._timed("load"):
            model = self._loaded()
            _check_opset(model)
            self._check_output(model)
            before = node_count(model)
        exact = model.clone() if self.narrows and self.verify == "model" else model
        with _uncollected():
            events, notes = self.rewrite(model, fusions, narrows=self.narrows)
            if exact is not model:
                self.rewrite(exact, fusions)
        report = Report(
            model=os.fspath(self.source) if isinstance(self.source, str | os.PathLike) else model.graph.name or "model",
            output=None if self.output is None else str(self.output),
            target=self.target,
            nodes_before=before,
            nodes_after=node_count(model),
            fused=fused_count(model),
            refused=[event for event in events if isinstance(event, Refused)],
            near_misses=[event for event in events if isinstance(event, NearMiss)],
            verification=Verification(self.verify, None if self.verify == "none" else True, notes=tuple(notes)),
            seconds=self.seconds,
        )
        absent = sorted(set(required) - {event.fusion for event in events if isinstance(event, Fused)})
        if absent:
            raise Rejected(f"required and not found in the model: {', '.join(absent)}", report)
        if self.verify == "model":
            self._verify_whole(exact, fusions, events, report)
            if self.narrows:
                self._measure_rounding(exact, model, report)
        if self.output is not None:
            with self._timed("write"):
                self._write(model)
        return Result(model, report, tuple(events))

    def _original(self) -> str | os.PathLike | ir.Model:
        """The model as it was given."""
        return self.source if isinstance(self.source, str | os.PathLike) else model_io.load(self.source)

    def _loaded(self) -> ir.Model:
        """The source, to be changed."""
        loaded = model_io.load(self.source)
        return model_io.copied(loaded) if isinstance(self.source, ir.Model) else loaded

    def _check_output(self, loaded: ir.Model) -> None:
        if self.output is not None:
            model_io.check_output(self.output, loaded, weights=self._storage, protect=self._protected())

    @property
    def _storage(self) -> str:
        """What `model_io` does with weights."""
        return "copy" if self.narrows else self.weights

    def _protected(self) -> list[str | os.PathLike]:
        return [self.source] if isinstance(self.source, str | os.PathLike) else []

    def rewrite(
        self, model: ir.Model, fusions: Sequence[Fusion], *, narrows: bool = False
    ) -> tuple[list[Event], list[str]]:
        """Rewrite `model` in place; what happened, and remarks on the verification."""
        interface = soundness.interface(model)
        with self._timed("normalise"):
            facts = normalise(model)
        verifier = MatchVerifier(facts, library=self.library) if self.verify != "none" else None

        def judged(candidate: Candidate) -> str | None:
            self.progress("verifying matches", verifier.candidates, None)
            return verifier(candidate)

        judge = judged if verifier is not None else None
        body = soundness.bodies(facts)
        events: list[Event] = []
        for batch in self._in_order(fusions):
            with self._timed("rewrite"):
                events += rewrite(model, facts, batch, verify=judge, body=body, strict=STRICT)
            with self._timed("tidy"):
                tidy(model, facts)
        with self._timed("tidy"):
            if narrows:
                self.narrowed = narrow(model, facts, self.weights)
            to_kernel_layout(model, facts, self.target)
            if soundness.interface(model) != interface:
                raise AssertionError(f"the rewrite changed the interface: {interface} -> {soundness.interface(model)}")
            if self.kv_cache == "shared":
                share_cache(model, facts)
            if self.level == "block":
                group_blocks(model, facts)
        with self._timed("check"):
            soundness.complete(model, facts)
            complaint = soundness.checker_complaint(model)
        notes = []
        if complaint is not None:
            original = model_io.load(self.source)
            if soundness.checker_complaint(original) is None:
                raise _contradiction(original, complaint)
            notes.append(f"onnx.checker rejects the original model already: {complaint}")
        if verifier is not None:
            notes.append(f"{len(verifier.verdicts)} different structures among {verifier.candidates} matches")
            if self.library is None:
                missing = "there is no operator library" if self.target == "cpu" else "CUDA kernels were not run"
                notes.append(f"{missing}: matches were verified as function bodies, on the CPU")
                if self.target == "cuda":
                    notes.append("onnxfuse validate --provider cuda compares the models with the CUDA kernels")
        if narrows:
            unmeasured = "" if self.verify == "model" else "; verify 'model' measures what that changes"
            notes.append(self.narrowed.note() + unmeasured)
        return events, notes

    def _in_order(self, fusions: Sequence[Fusion]) -> list[Sequence[Fusion]]:
        """First what makes operators, then what joins operators to larger ones: between the two the graph is tidied."""
        operators = of_level(fusions, "op")
        joined = [fusion for fusion in fusions if fusion not in operators]
        return [operators, joined] if self.level == "block" else [operators]

    def _verify_whole(
        self, model: ir.Model, fusions: Sequence[Fusion], events: Sequence[Event], report: Report
    ) -> None:
        original = self._original()

        def compare(candidate: ir.Model) -> Verification:
            return validate(
                original,
                candidate,
                library=self.library,
                progress=lambda done, total: self.progress("verifying the model", done, total),
            )

        with self._timed("verify"):
            found = compare(model)
            report.verification = replace(found, notes=(*report.verification.notes, *found.notes))
            if found.passed:
                return
            applied = sorted({event.fusion for event in events if isinstance(event, Fused)})
            loaded = self._loaded()

            def passes(skipped: frozenset[str]) -> bool:
                self.progress("searching the guilty fusion", len(skipped), None)
                candidate = loaded.clone()
                self.rewrite(candidate, [fusion for fusion in fusions if fusion.name not in skipped])
                return bool(compare(candidate).passed)

            names = tuple(guilty(applied, passes))
            report.verification = replace(report.verification, guilty=names)
        blame = f"; without {', '.join(names)} it does not: --skip {','.join(names)}"
        if not names:
            blame = ", and without any fusion it does too: a defect in normalising, please report it"
        raise Rejected(f"the rewritten model differs from the original{blame}", report)

    def _measure_rounding(self, exact: ir.Model, narrowed: ir.Model, report: Report) -> None:
        original = self._original()
        with self._timed("verify"):
            found = measure(
                original,
                exact,
                narrowed,
                self.narrowed,
                library=self.library,
                progress=lambda done, total: self.progress("measuring the error of the weights", done, total),
            )
        report.verification = replace(report.verification, rounding=found, passed=found.passed)
        if not found.passed:
            far = ", ".join(check.name for check in found.outputs if not check.passed)
            raise Rejected(f"with {self.weights} weights {far} is farther off than their rounding explains", report)

    def _write(self, model: ir.Model) -> None:
        model_io.save(
            model,
            self.output,
            weights=self._storage,
            protect=self._protected(),
            progress=lambda done, total: self.progress("writing weights", done, total),
        )

    @contextmanager
    def _timed(self, stage: str):
        self.progress(stage, 0, None)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@contextmanager
def _uncollected():
    """Without garbage collection: it would go through the whole graph again for every quarter that is added to it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check_opset(model: ir.Model) -> None:
    opset = model.opset_imports.get("", OLDEST_OPSET)
    if opset < OLDEST_OPSET:
        raise UsageError(
            f"the model is of ai.onnx opset {opset}, expected {OLDEST_OPSET} or newer: "
            f"convert it with onnx.version_converter.convert_version(model, {OLDEST_OPSET})"
        )


def _contradiction(original: ir.Model, complaint: str) -> Exception:
    """What to say where a rewritten model fails onnx.checker: some exports state no shapes, and never run."""
    try:
        validate(original, original)
    except UsageError as error:
        return UsageError(f"the model contradicts itself: {complaint}; {error}")
    return AssertionError(f"the rewritten model fails onnx.checker: {complaint}")


def _library() -> Path | None:
    try:
        return runtime.library_path()
    except FileNotFoundError:
        return None
