"""Verifying one match: the graph behind its outputs, before and after, on the same random inputs.

Both sides are cut at the values that the new nodes read, unless such a value is a *prelude*, computed from sizes,
masks, positions and constants alone: that is run too, so that masks and tables hold what they can hold. What is cut is
drawn at random, weights included (a rewrite has to be right for all weights, and none is read from disk). Constants
that only the old graph reads, such as an epsilon or a stored mask, keep their content: the rewrite depends on it.

Equal structures are tried once; `trial` runs them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import onnx_ir as ir

from onnxfuse.derived import DerivedTensor
from onnxfuse.facts import Facts
from onnxfuse.splice import Candidate
from onnxfuse.verify.feeds import draw
from onnxfuse.verify.interface import Interface
from onnxfuse.verify.sessions import onnxruntime
from onnxfuse.verify.slices import Unsliceable, content_text, cut_out, fingerprint, reads
from onnxfuse.verify.trial import Trial, Verdict

FLOATING = ("values", "past", "buffer", "embeddings")  # roles of inputs whose values are as good as any
ACTIVATIONS = (*FLOATING, "tokens")  # roles of inputs behind which the network itself begins
MOVEMENT = ("Cast", "Concat", "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
KEPT_SIZE = 16  # elements up to which a constant that the new nodes read keeps its content: a scale, not a weight


class MatchVerifier:
    """Judges candidates of one model: `verifier(candidate)` is None, or why the rewrite must not be made.

    Parameters
    ----------
    facts : Facts
        Of the normalised model, before anything is rewritten.
    library : path, optional
        The operator library; without it only function bodies are tried.
    provider : "cpu" | "cuda"

    Raises
    ------
    UsageError
        ONNX Runtime is not installed.
    """

    def __init__(self, facts: Facts, *, library: Path | None = None, provider: str = "cpu") -> None:
        onnxruntime()  # without it nothing could be verified: say so at once
        self.facts = facts
        self.library = library
        self.provider = provider
        self.interface = Interface.of(facts.model)
        roles = {entry.name: entry.role for entry in self.interface.inputs}
        self.roles = {value: roles.get(value.name, "values") for value in facts.model.graph.inputs}
        self.feed = cache(lambda point: draw(self.interface, point))  # all candidates are tried at the same few points
        self.verdicts: dict[str, Verdict] = {}
        self.candidates = 0
        self._is_prelude: dict[ir.Value, bool] = {}

    def __call__(self, candidate: Candidate) -> str | None:
        self.candidates += 1
        try:
            cuts = self._cuts(candidate)
            before = cut_out(candidate.outputs, cuts.__contains__, self.facts)
            after = cut_out(candidate.new_outputs, cuts.__contains__, self.facts)
            key = fingerprint((before, after), self._description)
            if key not in self.verdicts:
                self.verdicts[key] = Trial(self, candidate, before, after).verdict()
            return self.verdicts[key].reason
        except Unsliceable as why:
            return f"cannot be verified: {why}"

    def has_meaning(self, value: ir.Value) -> bool:
        """Whether `value` is an input that cannot be drawn like any number: a mask, a position, a token."""
        return self.roles.get(value, "values") not in FLOATING

    def _cuts(self, candidate: Candidate) -> set[ir.Value]:
        made = {output for node in candidate.new_nodes for output in node.outputs}
        read = {value for node in candidate.new_nodes for value in reads(node)} | set(candidate.new_outputs)
        cuts = {value for value in read - made - set(candidate.constants) if self._is_drawn(value)}
        captured = (value for value in candidate.inputs if not self.facts.is_constant(value) and self._is_drawn(value))
        cuts |= {value for value in captured if not _is_moved(value, cuts)}
        for value in candidate.constants:
            tensor = self.facts.tensor(value)
            if isinstance(tensor, DerivedTensor):
                cuts |= {value, tensor.source}
        return cuts

    def _is_drawn(self, value: ir.Value) -> bool:
        """Whether `value` is a weight or an activation: both sides are cut there."""
        tensor = self.facts.tensor(value)
        if tensor is not None:
            return tensor.size > KEPT_SIZE and tensor.dtype.is_floating_point()
        return not self._prelude(value)

    def _prelude(self, value: ir.Value) -> bool:
        stack = [value]
        while stack:
            current = stack[-1]
            known = self._prelude_alone(current)
            if known is None:
                inputs = reads(current.producer())
                pending = [read for read in inputs if read not in self._is_prelude]
                if pending:
                    stack.extend(pending)
                    continue
                known = all(self._is_prelude[read] for read in inputs)
            self._is_prelude[current] = known
            stack.pop()
        return self._is_prelude[value]

    def _prelude_alone(self, value: ir.Value) -> bool | None:
        """Whether `value` is a prelude, as far as it can be told without its producer's inputs."""
        if value in self._is_prelude:
            return self._is_prelude[value]
        if self.facts.is_constant(value) or self.facts.content(value) is not None:
            return True
        if value.producer() is None:
            return self.roles.get(value, "values") not in ACTIVATIONS
        return None

    def _description(self, value: ir.Value, kept: bool) -> str:
        tensor = self.facts.tensor(value)
        if isinstance(tensor, DerivedTensor):
            return f"{tensor.function.__qualname__} {tensor.dtype} {tensor.shape}"
        if kept:
            return content_text(tensor)
        return f"{self.facts.dtype(value)} {self.facts.shape(value)} {value.name if self.has_meaning(value) else ''}"


def _is_moved(value: ir.Value, origins: set[ir.Value]) -> bool:
    """Whether `value` is made of `origins` by movement alone: where a rewrite reads them before, all are one thing."""
    pending = [value]
    while pending:
        value = pending.pop()
        if value in origins:
            continue
        node = value.producer()
        if node is None or node.domain or node.op_type not in MOVEMENT:
            return False
        pending += node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return True
