"""The driver: stages, order, refusals, and what a replacement looks like."""

import linecache

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import (
    RMS_CONSTANTS,
    RMS_NORM,
    check_sound,
    fusing,
    model_of,
    named,
    neg_exp,
    operators,
    run,
)

from onnxfuse.dsl import Refuse, maybe, op, scalar, tensor
from onnxfuse.explain import Fused, Refused
from onnxfuse.facts import Facts
from onnxfuse.rewriter import FusionError, RewriteLoop, rewrite


class TestReplacement:
    def test_a_match_becomes_one_node_and_keeps_the_output(self, rms_norm):
        model = model_of(RMS_NORM, constants=RMS_CONSTANTS)
        [event] = run(model, rms_norm)
        assert event == Fused("rms_norm", "RMSNorm", replaced=7)
        [node] = model.graph
        assert (node.op_type, node.domain, node.attributes["epsilon"].value) == (
            "RMSNorm",
            "onnxfuse",
            np.float32(1e-5),
        )
        assert model.opset_imports["onnxfuse"] == 1
        [y] = model.graph.outputs
        assert (y.name, y.dtype, list(y.shape)) == ("y", ir.DataType.FLOAT, [2, 3, 8])
        assert not model.graph.initializers
        check_sound(model)

    def test_running_again_changes_nothing(self, rms_norm):
        model = model_of(RMS_NORM, constants=RMS_CONSTANTS)
        run(model, rms_norm)
        before = ir.to_proto(model).SerializeToString()
        assert run(model, rms_norm) == []
        assert ir.to_proto(model).SerializeToString() == before

    def test_the_same_model_gives_the_same_result(self, attention, rms_norm):
        results = set()
        for _ in range(3):
            model = model_of(
                RMS_NORM.replace("y =", "r =") + "a = Neg(r) b = Exp(a) y = Add(b, r)", constants=RMS_CONSTANTS
            )
            events = run(model, attention, neg_exp(), rms_norm)
            results.add((ir.to_proto(model).SerializeToString(deterministic=True), str(events)))
        assert len(results) == 1

    def test_facts_about_the_replaced_value_hold_for_the_new_one(self):
        model = model_of("n = Neg(x) e = Exp(n) y = Identity(e)", inputs="float[N,8] x", outputs="float[N,8] y")
        facts = Facts(model)
        before = facts.shape(named(model, "e"))
        rewrite(model, facts, [neg_exp()])
        assert facts.shape(named(model, "e")) == before

    def test_several_new_nodes_and_new_constants(self):
        def rewriting(new, m):
            doubled = new.onnx.Mul(m.x, np.float32(2))
            return new.Twice(doubled, new.constant(np.arange(3.0, dtype=np.float32), "table"))

        model = model_of("n = Neg(x) y = Exp(n)", constants="float table = {1}")
        model.graph.initializers["table"].name = "table"
        run(model, fusing(lambda x=tensor(): op.Exp(-x), rewriting))
        assert operators(model) == ["Mul", "Twice"]
        assert {"constant", "table_1"} <= model.graph.initializers.keys()
        assert [node.name for node in model.graph] == ["Mul", "Twice"]
        assert model.graph[0].outputs[0].name == "Mul_output_0"
        check_sound(model)

    def test_what_only_the_replaced_nodes_needed_goes_and_nothing_else(self):
        model = model_of(
            "unused = Abs(x) s = Shape(w) r = Reshape(x, s) s2 = Shape(x) r2 = Reshape(x, s2) y = Exp(r2) z = Neg(r)",
            outputs="float[2,3,8] y, float[8] z",
            constants="float spare = {1}",
        )
        run(model, fusing(lambda x=tensor(): op.Exp(op.Reshape(x, ...)), lambda new, m: new.Curve(m.x)))
        assert operators(model) == ["Abs", "Shape", "Reshape", "Curve", "Neg"]
        assert "spare" in model.graph.initializers

    def test_a_dead_control_flow_node_lets_go_of_what_its_branches_read(self):
        body = """
            a = Abs(x)
            c = If (b) <
                then_branch = t () => (float[2,3,8] p) { p = Neg(a) },
                else_branch = e () => (float[2,3,8] q) { q = Identity(w) }>
            m = Mul(x, c)
            y = Sub(m, m)
        """
        model = model_of(body, inputs="float[2,3,8] x, float[2,3,8] w, bool b")

        def zero(x=tensor(), c=tensor()):
            h = x * c
            return op.Sub(h, h)

        run(model, fusing(zero, lambda new, m: new.Zero(m.captured["x"] if m.x.value.name == "x" else m.c)))
        assert operators(model) == ["Zero"]
        check_sound(model)

    def test_a_rewrite_may_give_an_existing_value(self):
        model = model_of("n = Neg(x) m = Neg(n) y = Exp(m)")
        run(model, fusing(lambda x=tensor(): op.Neg(-x), lambda new, m: m.x))
        assert operators(model) == ["Exp"]
        assert model.graph[0].inputs[0].name == "x"

    def test_a_graph_output_keeps_its_name_though_an_existing_value_takes_its_place(self):
        model = model_of("n = Neg(x) y = Neg(n)")
        run(model, fusing(lambda x=tensor(): op.Neg(-x), lambda new, m: m.x))
        assert operators(model) == ["Identity"]
        assert [value.name for value in model.graph.outputs] == ["y"]
        check_sound(model)

    def test_one_new_value_for_two_outputs(self):
        model = model_of("a = Abs(x) y = Relu(a) z = Abs(a)", outputs="float[2,3,8] y, float[2,3,8] z")

        def both(x=tensor()):
            h = op.Abs(x)
            return op.Relu(h), op.Abs(h)

        def rewriting(new, m):
            h = new.onnx.Abs(m.x)
            return h, h

        run(model, fusing(both, rewriting))
        assert operators(model) == ["Abs", "Identity"]
        assert [value.name for value in model.graph.outputs] == ["y", "z"]
        check_sound(model)

    @pytest.mark.parametrize("returned", [None, (), (1, 2)])
    def test_a_rewrite_that_returns_the_wrong_number_of_values_is_an_error(self, returned):
        model = model_of("n = Neg(x) y = Exp(n)")
        with pytest.raises(FusionError, match="the rewrite of <lambda> returned"):
            run(model, fusing(lambda x=tensor(): op.Exp(-x), lambda new, m: returned))

    def test_a_mistake_in_a_check_names_the_fusion_and_the_node(self):
        made = neg_exp()

        @made.check
        def wrong(m):
            yield m.y is None, "there is no y"

        with pytest.raises(FusionError, match="at node 'make_y': AttributeError: <lambda> captures no 'y'") as caught:
            run(model_of("n = Neg(x) y = Exp(n)"), made)
        assert isinstance(caught.value.__cause__, AttributeError)

    def test_a_mistake_in_a_predicate_names_the_fusion_and_the_node(self):
        made = fusing(lambda x=tensor(): op.Exp(op.Neg(x).where(wrong_predicate, "no")), lambda new, m: new.NegExp(m.x))
        with pytest.raises(FusionError, match="at node 'make_y': TypeError: 'NoneType' object is not subscriptable"):
            run(model_of("n = Neg(x) y = Exp(n)"), made)

    @pytest.mark.parametrize("mistake", ["predicate", "check", "rewrite", "result"])
    def test_a_mistake_refuses_the_match_where_nobody_looks_for_mistakes(self, mistake):
        """The other fusions go on."""
        rewritings = {"rewrite": lambda new, m: new.NegExp(new.onnx.Abs(m.x), m.y), "result": lambda new, m: (1, 2)}
        made = fusing(
            lambda x=tensor(): op.Exp(op.Neg(x).where(wrong_predicate, "no") if mistake == "predicate" else op.Neg(x)),
            rewritings.get(mistake, lambda new, m: new.NegExp(m.x)),
        )

        @made.check
        def wrong(m):
            yield mistake != "check" or m.y is None, "there is no y"

        other = fusing(lambda x=tensor(): op.Sqrt(x), lambda new, m: new.Root(m.x))
        model = model_of("n = Neg(x) e = Exp(n) y = Sqrt(e)")
        events = run(model, made, other, strict=False)
        assert operators(model) == ["Neg", "Exp", "Root"]
        refused, *nearly = (event for event in events if isinstance(event, Refused))
        assert refused.reason.startswith("a defect of onnxfuse, please report it: ") and refused.node == "make_e"
        assert all("where near misses are looked for: TypeError" in event.reason for event in nearly)
        assert len(nearly) == (mistake == "predicate")
        check_sound(model)

    def test_a_number_as_input_is_an_error_that_says_what_to_do(self):
        model = model_of("y = Mul(x, c)", constants="float c = {2}")
        with pytest.raises(FusionError, match=r"give it as attribute, or m.captured\['name'\] as input"):
            run(model, fusing(lambda x=tensor(), c=scalar(): x * c, lambda new, m: new.Scale(m.x, m.c)))

    def test_an_output_that_nobody_reads_is_left_alone(self):
        """Replacing it would leave its node in place and the match with it, for ever."""

        def low(x=tensor()):
            return op.Split(x, axis=-1, outputs=2)[0]

        model = model_of("l, h = Split<axis=-1, num_outputs=2>(x) y = Neg(h)", outputs="float[2,3,4] y")
        assert run(model, fusing(low, lambda new, m: new.Low(m.x))) == []
        assert operators(model) == ["Split", "Neg"]


def wrong_predicate(value, facts):
    shape = None
    return shape[0]


class TestOrder:
    def test_stages_run_in_their_order(self):
        norm_first = fusing(lambda x=tensor(): op.Exp(-x), lambda new, m: new.Early(m.x), "norm")
        later = fusing(lambda x=tensor(): op.Abs(op.Exp(-x)), lambda new, m: new.Late(m.x), "attention")
        model = model_of("n = Neg(x) e = Exp(n) y = Abs(e)")
        run(model, later, norm_first)
        assert operators(model) == ["Early", "Abs"]

    def test_larger_patterns_come_first_within_a_stage(self):
        small = neg_exp()
        large = fusing(lambda x=tensor(): op.Abs(op.Exp(-x)), lambda new, m: new.Large(m.x))
        for order in ((small, large), (large, small)):
            model = model_of("n = Neg(x) e = Exp(n) y = Abs(e)")
            run(model, *order)
            assert operators(model) == ["Large"]

    def test_the_largest_enclosing_match_wins(self):
        """Consumers come before producers, so an optional node at the end is taken in."""
        made = fusing(lambda x=tensor(): maybe.Cast(op.Exp(-x)), lambda new, m: new.F(m.x))
        model = model_of("n = Neg(x) e = Exp(n) y = Cast<to=10>(e)", outputs="float16[2,3,8] y")
        run(model, made)
        assert operators(model) == ["F"]

    def test_what_a_rewrite_makes_possible_is_found_in_the_same_stage(self):
        first = neg_exp()
        own = op.ns("onnxfuse")
        second = fusing(lambda x=tensor(): op.Abs(own.NegExp(x)), lambda new, m: new.Whole(m.x))
        far = fusing(lambda x=tensor(): op.Sqrt(op.Tanh(op.Sin(op.Cos(own.Whole(x))))), lambda new, m: new.Far(m.x))
        model = model_of("n = Neg(x) e = Exp(n) a = Abs(e) c = Cos(a) s = Sin(c) t = Tanh(s) y = Sqrt(t)")
        run(model, far, second, first)
        assert operators(model) == ["Far"]

    @pytest.mark.parametrize(("after", "looks"), [("Tanh", 1), ("Exp", 2)])
    def test_a_pattern_that_has_none_of_the_new_operators_is_not_tried_again(self, after, looks):
        seen = []

        def reads(value, facts):
            seen.append(value)
            return False

        watching = fusing(lambda x=tensor(): getattr(op, after)(op.Relu(x).where(reads, "no")), lambda new, m: m.x)
        renamed = fusing(lambda x=tensor(): op.Neg(x), lambda new, m: new.onnx.Exp(m.x))
        run(model_of(f"a = Neg(x) b = Relu(a) y = {after}(b)"), watching, renamed, explain=False)
        assert len(seen) == looks

    def test_fusions_that_undo_each_other_are_named(self):
        there = fusing(lambda x=tensor(): op.Neg(x), lambda new, m: new.onnx.Abs(m.x))
        back = fusing(lambda x=tensor(): op.Abs(x), lambda new, m: new.onnx.Neg(m.x))
        there.name, back.name = "there", "back"
        with pytest.raises(RewriteLoop, match="back and there undo each other at node"):
            run(model_of("y = Neg(x)"), there, back)

    def test_a_fusion_that_feeds_itself_is_named(self):
        grow = fusing(lambda x=tensor(): op.Neg(x), lambda new, m: new.onnx.Neg(new.onnx.Identity(m.x)))
        with pytest.raises(RewriteLoop, match="undo"):
            run(model_of("y = Neg(x)"), grow)


class TestRefusals:
    def test_a_failing_check_says_why_and_where(self, rms_norm):
        @rms_norm.check
        def supported(m):
            yield m.D == 8, "never seen"
            yield m.weight.dtype == "float16", "weight is {m.weight.dtype}, x is {m.x}"
            raise AssertionError("conditions after a false one must not be evaluated")

        model = model_of(RMS_NORM, constants=RMS_CONSTANTS)
        [event] = run(model, rms_norm)
        assert event.reason == "weight is float32, x is 'x' float32[2, 3, 8]"
        file, line = event.where.split(":")
        assert file == "test_rewriter.py"
        assert "weight is {m.weight.dtype}" in linecache.getline(__file__, int(line))
        assert operators(model)[-1] == "Mul"

    def test_a_later_way_to_match_may_pass_the_check(self):
        made = fusing(lambda a=tensor(), b=tensor(): a + b, lambda new, m: new.Plus(m.a, m.b))

        @made.check
        def ordered(m):
            yield m.a.value.name == "w", "a is {m.a}"

        model = model_of("y = Add(x, w)")
        [event] = run(model, made)
        assert isinstance(event, Fused)
        assert [value.name for value in model.graph[0].inputs] == ["w", "x"]

    def test_a_rewrite_may_refuse(self, rms_norm):
        @rms_norm.rewrite
        def fused(new, m):
            new.RMSNorm(m.x, m.weight)
            raise Refuse(f"no kernel for {m.D} elements")

        model = model_of(RMS_NORM, constants=RMS_CONSTANTS)
        [event] = run(model, rms_norm)
        assert event.reason == "no kernel for 8 elements"
        check_sound(model)

    def test_a_failing_verification_leaves_the_graph_untouched(self, rms_norm):
        model = model_of(RMS_NORM, constants=RMS_CONSTANTS)
        before = ir.to_proto(model).SerializeToString()
        seen = []

        def verify(candidate):
            seen.append(candidate)
            assert operators(model)[-1] == "Mul"
            return "differs by 0.1"

        [event] = run(model, rms_norm, verify=verify)
        assert (event.outcome, event.reason) == ("refused", "differs by 0.1")
        assert ir.to_proto(model).SerializeToString() == before
        check_sound(model)
        candidate = seen[0]
        assert [value.name for value in candidate.outputs] == ["y"]
        assert [node.op_type for node in candidate.new_nodes] == ["RMSNorm"]
        assert {value.name for value in candidate.inputs} == {"x", "w", "eps"}
        assert {node.op_type for node in candidate.nodes} == {"Mul", "Div", "Sqrt", "Add", "ReduceMean", "Pow"}

    def test_verification_is_not_repeated_for_every_way_to_match(self):
        asked = []
        made = fusing(
            lambda a=tensor(), b=tensor(), c=tensor(), d=tensor(): (a + b) * (c + d), lambda new, m: new.F(m.a)
        )
        run(model_of("s = Add(x, w) t = Add(w, x) y = Mul(s, t)"), made, verify=lambda c: asked.append(c) or "no")
        assert len(asked) == 3

    def test_a_hopeless_search_is_reported(self):
        made = fusing(
            lambda a=tensor(), b=tensor(), last=tensor().where(lambda v, f: False): op.Concat(
                *(a | b for _ in range(12)), last, axis=0
            ),
            lambda new, m: new.F(m.a),
        )
        model = model_of(f"y = Concat<axis=0>({'x, ' * 12} x)", outputs="float[26,3,8] y")
        [event] = run(model, made, step_limit=1000)
        assert event.reason == "gave up after 1000 steps: too many ways to look at this root"

    def test_a_refusal_at_a_place_that_fused_later_is_forgotten(self):
        own = op.ns("onnxfuse")
        made = fusing(
            lambda x=tensor(), c=tensor(): op.Abs(x * c) | op.Abs(own.NegExp(x)), lambda new, m: new.Done(m.x)
        )

        @made.check
        def later(m):
            yield m.c is None, "not yet"

        absolute = fusing(lambda x=tensor(), w=tensor(): x * w, lambda new, m: new.NegExp(m.x))
        model = model_of("p = Mul(x, w) y = Abs(p)")
        events = run(model, made, absolute)
        assert [event.outcome for event in events] == ["fused", "fused"]


class TestBodies:
    @staticmethod
    def body(node, opset):
        x = ir.Value(name="x")
        inner = ir.Node("", "Neg", [x])
        outer = ir.Node("", "Exp", inner.outputs)
        graph = ir.Graph([x], outer.outputs, nodes=[inner, outer], opset_imports={"": opset}, name="body")
        return ir.Function(node.domain, node.op_type, f"opset{opset}", graph=graph, attributes=[])

    def test_a_new_operator_gets_its_function_once(self):
        model = model_of("n = Neg(x) e = Exp(n) m = Neg(e) y = Exp(m)")
        run(model, neg_exp(), body=self.body)
        assert operators(model) == ["NegExp", "NegExp"]
        assert [node.overload for node in model.graph] == ["opset18", "opset18"]
        assert list(model.functions) == [("onnxfuse", "NegExp", "opset18")]
        onnx.checker.check_model(ir.to_proto(model))

    def test_a_refused_candidate_leaves_no_function(self):
        model = model_of("n = Neg(x) y = Exp(n)")
        seen = []
        run(model, neg_exp(), body=self.body, verify=lambda candidate: seen.extend(candidate.functions) or "no")
        assert [function.identifier() for function in seen] == [("onnxfuse", "NegExp", "opset18")]
        assert not model.functions

    def test_facts_know_the_values_around_the_node_that_a_body_is_made_for(self):
        model = model_of("c = Cast<to=10>(x) n = Neg(c) e = Exp(n) y = Cast<to=1>(e)")
        facts, given = Facts(model), []

        def body(node, opset):
            given.extend((facts.dtype(value), facts.shape(value)) for value in (*node.inputs, *node.outputs))
            return self.body(node, opset)

        rewrite(model, facts, [neg_exp()], body=body)
        assert given == [(ir.DataType.FLOAT16, (2, 3, 8))] * 2
