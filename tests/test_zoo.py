"""Every model of the zoo, fused and run: equal, with the same interface, fused as far as its architecture allows.

The zoo is the folder that ONNXFUSE_MODEL_ZOO names. pytest prints a table of the groups at its end (conftest.py).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
import pytest
import zoo
from zoo_expectations import (
    ACCEPTANCE,
    BOUNDS,
    CAUSES,
    MORE_NODES,
    MOST_NODES,
    MOST_NODES_OF_BLOCKS,
    RANDOM,
    REFUSED_BY_VERIFICATION,
    UNOPTIMISED,
)

import onnxfuse
from onnxfuse.runtime import library_path
from onnxfuse.verify.model import validate

pytestmark = pytest.mark.skipif(zoo.FOLDER is None, reason=zoo.ABSENT)

GONE = ("Softmax", "Sigmoid", "ReduceMean", "Neg")  # of a fused Llama
COUNTED = {
    "attention": ("Attention",),
    "rope_applications": ("RotaryEmbedding",),
    "rmsnorm": ("RMSNorm", "SkipRMSNorm"),
    "residual_add_norm": ("SkipRMSNorm",),
    "gated_mlp": ("GatedMLP",),
}


@dataclass
class Case:
    """A model, and what `onnxfuse.optimize` made of it."""

    entry: zoo.Entry
    result: onnxfuse.Result
    path: Path

    def __post_init__(self) -> None:
        self.operators = zoo.operators(self.result.model)
        self.nodes = self.operators.total() - self.operators["Constant"]

    def count(self, what: str) -> int:
        return sum(self.result.report.fused.get(operator, 0) for operator in COUNTED[what])

    def bounds(self, what: str) -> tuple[int, int]:
        expected = self.entry.expected.get(what, 0)
        if what == "gated_mlp" and isinstance(expected, int):
            expected += self.entry.expected.get("geglu", 0)  # counted apart there, the same operator here
        return BOUNDS.get((self.entry.name, what), (expected, expected))


@pytest.fixture(scope="module")
def fuse(tmp_path_factory):
    """Rewrites a model once for all its tests."""

    @functools.cache
    def fuse(entry: zoo.Entry) -> Case:
        path = tmp_path_factory.mktemp("zoo") / "fused.onnx"
        return Case(entry, onnxfuse.optimize(entry.path, path), path)

    return fuse


@pytest.fixture
def case(request, fuse) -> Case:
    return fuse(request.param)


def each(condition=lambda entry: True):
    """Of all models that meet the condition."""
    chosen = [entry for entry in zoo.entries() if condition(entry)]
    return pytest.mark.parametrize("case", chosen, ids=lambda entry: entry.name, indirect=True)


def options(entry: zoo.Entry) -> onnxruntime.SessionOptions:
    made = onnxruntime.SessionOptions()
    if entry.name in UNOPTIMISED:
        made.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return made


def run(session: onnxruntime.InferenceSession, feed: zoo.Arrays) -> zoo.Arrays:
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, feed), strict=True))


def reference(entry: zoo.Entry, feed: zoo.Arrays) -> zoo.Arrays:
    """The outputs of the original without ONNX Runtime's optimisations."""
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return run(onnxruntime.InferenceSession(entry.path, plain), feed)


def check_equal(entry: zoo.Entry, session: onnxruntime.InferenceSession) -> None:
    feed, expected = entry.sample()
    actual = run(session, feed)
    if entry.name in RANDOM:
        return
    expected = reference(entry, feed) if expected is None else expected
    pairs = {name: (zoo.defined(e, feed), zoo.defined(actual[name], feed)) for name, e in expected.items()}
    distances = {name: zoo.distance(wanted, got) for name, (wanted, got) in pairs.items()}
    wrong = {name: far for name, far in distances.items() if not far <= entry.tolerance(expected[name])}
    assert not wrong


@each()
def test_equal_with_the_library(case, record_property):
    record_property("nodes", case.nodes)
    check_equal(case.entry, onnxfuse.session(case.path, options=options(case.entry)))


@each()
def test_equal_without_the_library(case):
    check_equal(case.entry, onnxruntime.InferenceSession(case.path, options(case.entry)))


@each()
def test_interface_is_kept(case):
    assert zoo.interface(case.path) == zoo.interface(case.entry.path)


@each()
def test_bytes_are_reproducible(case, tmp_path):
    # Without verification, which only decides what is fused: another way to the same bytes.
    verify = "match" if case.entry.name in REFUSED_BY_VERIFICATION else "none"
    onnxfuse.optimize(case.entry.path, tmp_path / "again.onnx", verify=verify)
    assert (tmp_path / "again.onnx").read_bytes() == case.path.read_bytes()


@each()
def test_rewriting_the_result_changes_nothing(case, tmp_path):
    onnxfuse.optimize(case.path, tmp_path / "twice.onnx")
    assert (tmp_path / "twice.onnx").read_bytes() == case.path.read_bytes()


@each(lambda entry: entry.is_llama)
def test_llama_is_fully_fused(case):
    fused = {what: case.count(what) for what in COUNTED}
    assert fused == {what: case.entry.expected[what] for what in COUNTED}
    assert not [operator for operator in GONE if case.operators[operator]]


@each(lambda entry: entry.is_llama and entry.is_dynamic and entry.layers == 2)
def test_dynamic_llama_is_small(case):
    most, _ = MORE_NODES.get(case.entry.name, (MOST_NODES, ""))
    assert case.nodes <= most, dict(case.operators)


@each(lambda entry: entry.group in ("near_miss", "control", "family"))
def test_no_more_is_fused_than_is_there(case):
    for what in COUNTED:
        _, most = case.bounds(what)
        assert isinstance(most, str) or case.count(what) <= most, what


@each(lambda entry: entry.group == "near_miss")
def test_near_miss_keeps_its_other_fusions(case):
    for what in COUNTED:
        least, most = case.bounds(what)
        assert case.count(what) >= (least if case.entry.name in CAUSES else most), what


@each(lambda entry: entry.name in CAUSES)
def test_explanation_names_the_cause(case):
    fusion, words = CAUSES[case.entry.name]
    told = [event for event in case.result.events if event.fusion == fusion and event.outcome != "fused"]
    assert any(words in (e.reason if e.outcome == "refused" else f"{e.message} {e.tried}") for e in told), told


@each(lambda entry: entry.group == "genai")
def test_built_model_gains_its_mlp_and_loses_nothing(case):
    before = zoo.operators(onnx_ir.load(case.entry.path))
    after = case.operators
    assert after["SwiGLU"] + after["GatedMLP"] == case.entry.expected["gated_mlp"]
    assert after["GroupQueryAttention"] == before["GroupQueryAttention"]
    norms = ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "RMSNorm", "SkipRMSNorm")
    assert sum(after[norm] for norm in norms) == sum(before[norm] for norm in norms)


@pytest.mark.parametrize("name", ACCEPTANCE)
def test_equal_at_every_size(name, fuse):
    """Batches 1 and 3, prompts of 1, 4 and 17, past of 0, 5 and 64, padded left and right, where the model allows."""
    (entry,) = (entry for entry in zoo.entries() if entry.name == name)
    found = validate(entry.path, fuse(entry).path, tolerance=entry.tolerance(np.zeros(0)), library=library_path())
    assert found.passed, found


@pytest.mark.parametrize("name", ACCEPTANCE)
def test_a_model_of_blocks_is_equal_and_smaller(name, fuse, tmp_path):
    (entry,) = (entry for entry in zoo.entries() if entry.name == name)
    made = onnxfuse.optimize(entry.path, tmp_path / "blocks.onnx", level="block", verify="model")
    halves = made.report.fused["AttentionBlock"], made.report.fused["GatedMLP"]
    assert halves == (entry.expected["attention"], entry.expected["gated_mlp"])
    # the norms, the projections of queries, keys, values and output, the rotary embeddings
    assert made.report.nodes_after <= fuse(entry).nodes - 7 * halves[0] - halves[1]
    if entry.is_dynamic and name not in MORE_NODES:
        assert made.report.nodes_after <= MOST_NODES_OF_BLOCKS
