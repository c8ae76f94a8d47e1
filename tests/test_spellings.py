"""Every spelling of a fusion is fused and right; no mutation that leaves the function is fused.

The environment variable ONNXFUSE_SPELLINGS says how many spellings, and as many mutations, are tried; 2100 is the whole
set, 210 are tried without it. A failure names its cases; ONNXFUSE_SPELLING=rms_norm:17:18 tries the one of that label.
pytest prints a table of the families at its end (conftest.py).
"""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
import pytest
from spellings import batch, faults
from spellings.cases import FAMILIES, OPSETS, Case, case, labelled

import onnxfuse

COUNT = int(os.environ.get("ONNXFUSE_SPELLINGS", "210"))
LABEL = os.environ.get("ONNXFUSE_SPELLING")
TOGETHER = 15  # cases in one model
VERIFIED = 3  # of these, verified as well


@dataclass(frozen=True)
class Batch:
    """Cases of one family and one opset."""

    labels: tuple[str, ...]

    @property
    def family(self) -> str:
        return self.labels[0].partition(":")[0]

    def __str__(self) -> str:
        return f"{self.labels[0]}+{len(self.labels) - 1}"


def batches() -> list[Batch]:
    """All that are to be tried."""
    if LABEL:
        return [Batch((":".join(LABEL.split(":")[:3]),))]
    share = -(-COUNT // len(FAMILIES))
    found = []
    for number, family in enumerate(FAMILIES):
        for first in range(0, share, TOGETHER):
            opset = OPSETS[(number + 5 * (first // TOGETHER)) % len(OPSETS)]
            found.append(
                Batch(tuple(f"{family}:{seed}:{opset}" for seed in range(first, min(first + TOGETHER, share))))
            )
    return found


each = pytest.mark.parametrize("chosen", batches(), ids=str)


@functools.cache
def spelled(chosen: Batch) -> tuple[list[Case], list[batch.Arrays]]:
    """The batch's cases, and what they compute."""
    cases = [labelled(label) for label in chosen.labels]
    return cases, batch.outputs(batch.model(cases), cases)


def fused(cases: Sequence[Case], verify: str = "none") -> ir.Model:
    return onnxfuse.optimize(batch.model(cases), verify=verify).model


def in_bfloat16(labels: Sequence[str]) -> list[Case]:
    """The cases of these labels in another dtype."""
    parts = [label.split(":") for label in labels]
    return [case(family, int(seed), int(opset), dtype="bfloat16") for family, seed, opset in parts]


def changed(cases: Sequence[Case], names: str) -> list[tuple[Case, Case]]:
    """Every case that offers any of these changes, with one of them made."""
    pairs = []
    for c in cases:
        offered = sorted(set(getattr(c.writer, names)))
        wanted = LABEL.split(":")[3:] if LABEL else []
        if offered and (not wanted or wanted[0] in offered):
            name = wanted[0] if wanted else random.Random(c.label).choice(offered)
            pairs.append((c, case(c.family, c.seed, c.writer.opset, name)))
    return pairs


@each
def test_every_spelling_is_fused(chosen, record_property):
    cases, before = spelled(chosen)
    rewritten = fused(cases)
    found = dict(zip(cases, batch.fused(rewritten, cases), strict=True))
    missed = {c.label: f"{dict(found[c])} instead of {c.expected}" for c in cases if found[c] != c.expected}
    record_property("family", chosen.family)
    record_property("spellings", len(cases))
    record_property("fused", len(cases) - len(missed))
    after = batch.outputs(rewritten, cases)
    wrong = [c.label for c in cases if batch.differs(c, c, before, after)]
    assert not missed
    assert not wrong


@each
def test_every_spelling_is_fused_in_bfloat16(chosen, record_property):
    """ONNX Runtime's CPU provider can't run most of these graphs."""
    cases = in_bfloat16(chosen.labels)
    found = dict(zip(cases, batch.fused(fused(cases), cases), strict=True))
    missed = {c.label: f"{dict(found[c])} instead of {c.expected}" for c in cases if found[c] != c.expected}
    record_property("family", chosen.family)
    record_property("bfloat16", len(cases) - len(missed))
    assert not missed


@each
def test_right_fusions_pass_verification(chosen):
    """Each alone, as a model has it: what is drawn for its inputs depends on all of them."""
    some = chosen.labels[:VERIFIED]
    cases = [*map(labelled, some), *in_bfloat16(some)]
    found = {c: batch.fused(fused([c], verify="match"), [c])[0] for c in cases}
    assert not {f"{c.label} {c.writer.dtype}": dict(found[c]) for c in cases if found[c] != c.expected}


@each
def test_wrong_rewrites_are_refused_by_verification(chosen, monkeypatch, record_property):
    """What the mutations cannot show, as no pattern matches them."""
    tried, accepted = 0, []
    for label in chosen.labels[:VERIFIED]:
        made = labelled(label)
        operator = next(iter(made.expected))
        for name, fault in faults.shuffled(operator, label):
            broken = faults.break_rewrites(operator, fault, monkeypatch)
            kept = batch.fused(fused([made], verify="match"), [made])[0][operator]
            monkeypatch.undo()
            if broken:
                tried += 1
                accepted += [f"{label} {name}"] if kept else []
                break
    record_property("family", chosen.family)
    record_property("wrong rewrites", tried)
    record_property("refused", tried - len(accepted))
    assert not accepted


@each
def test_no_mutation_is_fused(chosen, record_property):
    cases, before = spelled(chosen)
    pairs = changed(cases, "mutations")
    mutations = [mutation for _, mutation in pairs]
    if not mutations:
        pytest.skip("the one case that is wanted is none of these")
    after = batch.outputs(batch.model(mutations), mutations)
    without_effect = [b.label for a, b in pairs if not batch.differs(a, b, before, after, batch.EFFECT)]
    matched = [
        c for c, found in zip(mutations, batch.fused(fused(mutations), mutations), strict=True) if c.loses(found)
    ]
    accepted = [c.label for c in matched if c.loses(batch.fused(fused([c], verify="match"), [c])[0])]
    record_property("family", chosen.family)
    record_property("mutations", len(mutations))
    record_property("refused by matching", len(mutations) - len(matched))
    record_property("by verification", len(matched) - len(accepted))
    assert not without_effect
    assert not accepted


@each
def test_what_shifts_is_right(chosen, record_property):
    """Another function of the same kind may be fused as what it is."""
    shifted = [shift for _, shift in changed(spelled(chosen)[0], "shifts")]
    if not shifted:
        pytest.skip("the one case that is wanted is none of these")
    before = batch.outputs(batch.model(shifted), shifted)
    after = batch.outputs(fused(shifted), shifted)
    wrong = [c.label for c in shifted if batch.differs(c, c, before, after)]
    record_property("family", chosen.family)
    record_property("shifts", len(shifted))
    record_property("right", len(shifted) - len(wrong))
    assert not wrong
