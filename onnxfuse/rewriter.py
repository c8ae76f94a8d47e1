"""The driver: stage by stage, larger patterns first, consumers before producers, until nothing matches any more."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import onnx_ir as ir

from onnxfuse import operators
from onnxfuse.alignment import Aligner
from onnxfuse.builder import Builder, discard
from onnxfuse.diagnose import near_misses
from onnxfuse.explain import Event, Fused, NearMiss, Refused
from onnxfuse.facts import Facts
from onnxfuse.fusion import STAGES, Fusion, Match, Refuse, node_text, where_text
from onnxfuse.matcher import STEP_LIMIT, StepLimitReached
from onnxfuse.order import Order, Places
from onnxfuse.splice import Candidate, Names, computed_twice, obstacle, removable, splice

Verify = Callable[[Candidate], str | None]
Body = Callable[[ir.Node, int], ir.Function]

SOLUTION_LIMIT = 32  # ways to match one root that are offered to the checks
VERIFY_LIMIT = 3  # of them to the verifier, which is slow
GENERATION_LIMIT = 50  # rewrites of what a rewrite made; the longest honest chain is a stage's worth


class RewriteLoop(Exception):
    """Fusions that undo each other."""


class FusionError(Exception):
    """A predicate, check or rewrite of a fusion broke down: a mistake in the pattern file, not the model's."""


def rewrite(
    model: ir.Model,
    facts: Facts,
    fusions: Iterable[Fusion],
    *,
    verify: Verify | None = None,
    body: Body | None = None,
    explain: bool = True,
    step_limit: int = STEP_LIMIT,
    strict: bool = True,
) -> list[Event]:
    """Apply `fusions` to `model` in place.

    Parameters
    ----------
    verify
        Called with every candidate before it enters the graph; a text refuses it and is the reason reported.
    body
        Makes the function body of a new node of domain `onnxfuse`, given the model's opset version; `facts` then know
        the node's inputs and those of its outputs that replace a value.
    explain
        Look for near misses at the end of each stage.
    step_limit
        Steps after which matching at one root is given up and reported as refused.
    strict
        Raise FusionError; otherwise a fusion that breaks down at a match refuses it, and the reason says so.

    Returns
    -------
    What happened, in the order of events; the same model and fusions give the same events.

    Raises
    ------
    RewriteLoop
        Fusions undo each other.
    FusionError
        A pattern's predicate, a check or a rewrite raised an exception, which is its cause, or returned what is no
        replacement.
    """
    run = _Run(model, facts, verify, body, step_limit, strict)
    fusions = list(fusions)
    for stage in STAGES:
        batch = sorted((f for f in fusions if f.stage == stage), key=lambda f: (-f.size, f.name))
        if batch:
            run.stage(batch)
            if explain:
                run.find_near_misses(batch)
    return run.events()


def _broken(fusion: Fusion, where: str, error: Exception) -> FusionError:
    return FusionError(f"{fusion.name} ({fusion.location}) {where}: {type(error).__name__}: {error}")


def _defect(fusion: Fusion, error: FusionError) -> tuple[str, str]:
    return f"a defect of onnxfuse, please report it: {error}", where_text(fusion.location)


class _Run:
    def __init__(
        self, model: ir.Model, facts: Facts, verify: Verify | None, body: Body | None, step_limit: int, strict: bool
    ) -> None:
        self.model = model
        self.facts = facts
        self.verify = verify
        self.body = body
        self.step_limit = step_limit
        self.strict = strict
        self.order = Order(model)
        self.names = Names(self.order)
        self.fused: list[Fused] = []
        self.refused: dict[tuple[str, ir.Node], Refused] = {}
        self.defects: list[Refused] = []  # what broke down while near misses were looked for
        self.explained: dict[str, set[ir.Node]] = defaultdict(set)  # by fusion, the nodes of refused matches
        self.missed: list[tuple[ir.Node, NearMiss]] = []
        self.lineage: dict[ir.Node, tuple[str, ...]] = {}

    def events(self) -> list[Event]:
        missed = [miss for node, miss in self.missed if node.graph is not None]
        return [*self.fused, *self.refused.values(), *self.defects, *missed]

    def find_near_misses(self, fusions: Sequence[Fusion]) -> None:
        """Ask why the places that are still there resisted; refusals have said why already."""
        places = Places(self.order.consumers_first())
        aligner = Aligner(self.facts)
        for fusion in fusions:
            try:
                self.missed += near_misses(fusion, places, aligner, self.explained[fusion.name])
            except Exception as error:
                defect = _broken(fusion, "where near misses are looked for", error)
                if self.strict:
                    raise defect from error
                self.defects.append(Refused(fusion.name, self.model.graph.name or "", *_defect(fusion, defect)))

    def stage(self, fusions: Sequence[Fusion]) -> None:
        """Try every fusion at every node, then again around what changed, until nothing does.

        A pattern without any of the new operators sees nothing new.
        """
        anchors = self.order.consumers_first()
        present: set[operators.OpId] = set()
        tried = fusions
        while tried:
            places = Places(anchors)
            present |= places.operators
            changed: list[ir.Node] = []
            for fusion in tried:
                for node in places.of(fusion.heads_among(present)):
                    if node.graph is not None:
                        made = self.attempt(fusion, node)
                        changed.extend(made)
                        present.update((new.domain, new.op_type) for new in made)
            new_operators = {(node.domain, node.op_type) for node in changed}
            tried = [fusion for fusion in fusions if fusion.operators & new_operators]
            anchors = self._around(changed, max((fusion.height for fusion in tried), default=0))

    def _around(self, changed: Sequence[ir.Node], reach: int) -> list[ir.Node]:
        """What `changed` may have made match: itself and its users as far as a pattern is high."""
        found = frontier = dict.fromkeys(node for node in changed if node.graph is not None)
        for _ in range(reach):
            users = (use.node for node in frontier for output in node.outputs for use in output.uses())
            frontier = {node: None for node in users if node not in found}
            found = {**found, **frontier}
        return self.order.sorted_consumers_first(found)

    def attempt(self, fusion: Fusion, node: ir.Node) -> Sequence[ir.Node]:
        """Apply `fusion` with `node` as its root if it matches; return the new nodes."""
        for value in node.outputs:
            if not value.uses() and not value.is_graph_output():
                continue  # replacing what nobody reads would leave the graph as it is, for ever
            refusal = None
            unverified = 0
            try:
                for match in itertools.islice(self._matches(fusion, value), SOLUTION_LIMIT):
                    candidate, reason = self._judge(fusion, match)
                    if reason is None and self.verify is not None:
                        reason = self._verified(candidate)
                        unverified += reason is not None
                    if reason is None:
                        return self._apply(candidate, node)
                    self.explained[fusion.name].update(match.nodes)
                    refusal = refusal or reason
                    if unverified == VERIFY_LIMIT:
                        break
            except StepLimitReached as limit:
                refusal = refusal or (str(limit), where_text(fusion.location))
                self.explained[fusion.name].add(node)
            except FusionError as defect:
                if self.strict:
                    raise
                refusal = _defect(fusion, defect)
                self.explained[fusion.name].add(node)
            if refusal is not None:
                self.refused[fusion.name, node] = Refused(fusion.name, node_text(node), *refusal)
        return ()

    def _matches(self, fusion: Fusion, value: ir.Value) -> Iterator[Match]:
        try:
            yield from fusion.matches(value, self.facts, self.step_limit)
        except StepLimitReached:
            raise
        except Exception as error:
            raise _broken(fusion, f"at node {node_text(value.producer())!r}", error) from error

    def _judge(self, fusion: Fusion, match: Match) -> tuple[Candidate | None, tuple[str, str] | None]:
        """The replacement for `match`, or the reason against it and where that stands."""
        new = Builder()
        try:
            refusal = fusion.refusal(match)
            if refusal is not None:
                return None, refusal
            reason = computed_twice(match, removable(match, match.outputs), match.outputs)
            if reason is not None:
                return None, (reason, where_text(fusion.location))
            built = fusion.rewriting(new, match)
        except Refuse as refused:
            discard(new.nodes)
            return None, (str(refused), where_text(fusion.location))
        except Exception as error:
            discard(new.nodes)
            raise _broken(fusion, f"at node {node_text(match.root)!r}", error) from error
        candidate = self._candidate(fusion, match, new, built)
        reason = obstacle(candidate, self.order)
        if reason is not None:
            discard(new.nodes)
            return None, (reason, where_text(fusion.location))
        if self.body is not None:
            self._give_bodies(candidate)
        return candidate, None

    def _verified(self, candidate: Candidate) -> tuple[str, str] | None:
        reason = self.verify(candidate)
        if reason is None:
            return None
        discard(candidate.new_nodes)
        return reason, where_text(candidate.fusion.location)

    def _candidate(self, fusion: Fusion, match: Match, new: Builder, built: object) -> Candidate:
        results = built if isinstance(built, tuple) else (built,)
        values = [getattr(result, "value", result) for result in results]
        pairs = [
            (old, made)
            for old, made in zip(match.outputs, values, strict=False)
            if made is not None and made is not old
        ]
        if len(values) != len(match.outputs) or not pairs or not all(isinstance(made, ir.Value) for _, made in pairs):
            discard(new.nodes)
            raise FusionError(
                f"{fusion.location}: the rewrite of {fusion.name} returned {built!r}; expected {len(match.outputs)} "
                "values or captures, one for each output of the pattern, None for an output to be left as it is"
            )
        candidate = Candidate(
            fusion=fusion,
            match=match,
            nodes=match.nodes,
            inputs=match.inputs,
            outputs=tuple(old for old, _ in pairs),
            new_outputs=tuple(made for _, made in pairs),
            new_nodes=new.nodes,
            constants=new.constants,
        )
        for old, made in pairs:
            if made.producer() in new.nodes:
                self.facts.assign(made, like=old)
        candidate.removed = removable(match, candidate.outputs)
        return candidate

    def _give_bodies(self, candidate: Candidate) -> None:
        opset = self.model.graph.opset_imports.get(operators.STANDARD, 1)
        for node in candidate.new_nodes:
            if node.domain == operators.OWN:
                function = self.body(node, opset)
                node.overload = function.overload
                candidate.functions.append(function)

    def _apply(self, candidate: Candidate, root: ir.Node) -> Sequence[ir.Node]:
        past = max((self.lineage.get(node, ()) for node in candidate.removed), key=len, default=())
        lineage = (*past, candidate.fusion.name)
        if len(lineage) > GENERATION_LIMIT:
            names = " and ".join(sorted(set(lineage)))
            raise RewriteLoop(f"{names} undo each other at node {node_text(root)!r}: {len(lineage)} rewrites in a row")
        replaced = len(candidate.removed)
        for key in [key for key in self.refused if key[1] in set(candidate.removed)]:
            if key[0] == candidate.fusion.name:
                del self.refused[key]
        splice(candidate, self.model, self.order, self.names)
        self.lineage.update(dict.fromkeys(candidate.new_nodes, lineage))
        main = node_text(candidate.new_nodes[-1]) if candidate.new_nodes else candidate.new_outputs[0].name
        self.fused.append(Fused(candidate.fusion.name, main, replaced))
        return candidate.new_nodes
