"""The driver: what is replaced, what stays, in which order, under which names."""

import linecache
import random

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from onnxfuse.dsl import Refuse, any_of, fusion, maybe, op, scalar, tensor
from onnxfuse.explain import Fused, Refused
from onnxfuse.facts import Facts
from onnxfuse.rewriter import RewriteLoop, rewrite


def fusing(pattern, rewriting, stage="elementwise"):
    made = fusion(stage=stage)(pattern)
    made.rewrite(rewriting)
    return made


def model_of(body, inputs="float[2,3,8] x, float[8] w", outputs="float[2,3,8] y", constants="", opset=18):
    header = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    model = ir.from_onnx_text(f"{header} g ({inputs}) => ({outputs}) <{constants}> {{ {body} }}")
    for node in model.graph.all_nodes():
        node.name = f"make_{node.outputs[0].name}"
    return model


def run(model, *fusions, **options):
    return rewrite(model, Facts(model), fusions, **options)


def operators(model):
    return [node.op_type for node in model.graph]


def named(model, name):
    return next(value for node in model.graph.all_nodes() for value in node.outputs if value.name == name)


def check_sound(model):
    """Every value is made before it is read, names are unique, and every user knows its inputs."""
    proto = ir.to_proto(model)
    seen = {value.name for value in (*proto.graph.input, *proto.graph.initializer)}
    for node in proto.graph.node:
        assert seen.issuperset(name for name in node.input if name), f"{node.op_type} {node.name} reads too early"
        assert seen.isdisjoint(node.output)
        seen.update(node.output)
    assert seen.issuperset(value.name for value in proto.graph.output)
    names = [node.name for node in model.graph.all_nodes()]
    assert len(set(names)) == len(names)
    for node in model.graph.all_nodes():
        for index, value in enumerate(node.inputs):
            assert value is None or (node, index) in value.uses()
        for value in node.outputs:
            assert all(use.node.graph is not None and use.node.inputs[use.idx] is value for use in value.uses())


def evaluate(model, feeds):
    return ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)


@pytest.fixture
def rms_norm():
    @fusion(stage="norm", op="RMSNorm")
    def rms_norm(x=tensor("... D"), weight=tensor("D"), eps=scalar()):
        """RMSNorm: y = x / sqrt(mean(x^2) + eps) * weight."""
        h = maybe.Cast(x, to="float32")
        mean_square = op.ReduceMean(h**2 | h * h, axes=[-1], keepdims=1)
        rms = op.Sqrt(mean_square + eps)
        return maybe.Cast(h / rms | h * (1 / rms)) * weight

    @rms_norm.rewrite
    def fused(new, m):
        return new.RMSNorm(m.x, m.weight, epsilon=m.eps)

    return rms_norm


@pytest.fixture
def attention():
    @fusion(stage="attention", op="Attention")
    def attention(q=tensor(), k=tensor(), v=tensor(), mask=tensor()):
        scores = op.MatMul(q, op.Transpose(k, perm=[0, 2, 1]))
        return op.MatMul(op.Softmax(scores + mask | scores, axis=-1), v)

    @attention.rewrite
    def fused(new, m):
        return new.Attention(m.q, m.k, m.v, m.mask)

    return attention


RMS_NORM = """
    square = Pow(x, two)
    mean = ReduceMean(square, axes)
    shifted = Add(mean, eps)
    root = Sqrt(shifted)
    inverse = Div(one, root)
    normal = Mul(x, inverse)
    y = Mul(w, normal)
"""
RMS_CONSTANTS = "float two = {2.0}, float eps = {1e-5}, int64[1] axes = {-1}, float one = {1.0}"
QKV = "float[2,5,8] q, float[2,5,8] k, float[2,5,8] v"
ATTENTION = """
    t = Transpose<perm=[0,2,1]>(k)
    s = MatMul(q, t)
    p = Softmax<axis=-1>(s)
    y = MatMul(p, v)
"""


def neg_exp(name="NegExp", stage="elementwise"):
    return fusing(lambda x=tensor(): op.Exp(-x), lambda new, m: getattr(new, name)(m.x), stage)


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
        with pytest.raises(TypeError, match="the rewrite of <lambda> returned"):
            run(model, fusing(lambda x=tensor(): op.Exp(-x), lambda new, m: returned))

    def test_a_number_as_input_is_an_error_that_says_what_to_do(self):
        model = model_of("y = Mul(x, c)", constants="float c = {2}")
        with pytest.raises(TypeError, match=r"give it as attribute, or m.captured\['name'\] as input"):
            run(model, fusing(lambda x=tensor(), c=scalar(): x * c, lambda new, m: new.Scale(m.x, m.c)))


class TestSafety:
    def test_a_cheap_inner_node_with_another_user_stays_beside(self):
        model = model_of("n = Neg(x) e = Exp(n) y = Add(e, n)")
        run(model, neg_exp())
        assert operators(model) == ["Neg", "NegExp", "Add"]
        check_sound(model)

    def test_an_inner_graph_output_stays(self):
        model = model_of("n = Neg(x) y = Exp(n)", outputs="float[2,3,8] y, float[2,3,8] n")
        run(model, neg_exp())
        assert operators(model) == ["Neg", "NegExp"]
        assert [value.name for value in model.graph.outputs] == ["y", "n"]

    def test_an_inner_value_read_by_a_subgraph_stays(self):
        body = """
            n = Neg(x)
            e = Exp(n)
            y = If (b) <
                then_branch = t () => (float[2,3,8] p) { p = Add(n, e) },
                else_branch = f () => (float[2,3,8] q) { q = Identity(e) }>
        """
        model = model_of(body, inputs="float[2,3,8] x, bool b")
        run(model, neg_exp())
        assert operators(model) == ["Neg", "NegExp", "If"]
        assert {use.node.op_type for use in named(model, "e").uses()} == {"Add", "Identity"}
        check_sound(model)

    @pytest.mark.parametrize(
        ("user", "outputs", "reason"),
        [
            (
                "z = Relu(s)",
                "float[2,5,8] y, float[2,5,5] z",
                "MatMul 'make_s' would be computed twice: 's' is also used by Relu 'make_z'",
            ),
            (
                "",
                "float[2,5,8] y, float[2,5,5] s",
                "MatMul 'make_s' would be computed twice: 's' is also a graph output",
            ),
            (
                "z = Relu(p)",
                "float[2,5,8] y, float[2,5,5] z",
                "Softmax 'make_p' would be computed twice: 'p' is also used by Relu 'make_z'",
            ),
        ],
    )
    def test_an_expensive_inner_node_with_another_user_refuses(self, attention, user, outputs, reason):
        model = model_of(ATTENTION + user, inputs=QKV, outputs=outputs)
        before = ir.to_proto(model).SerializeToString()
        [event] = run(model, attention)
        assert isinstance(event, Refused)
        assert event.reason == reason
        assert ir.to_proto(model).SerializeToString() == before
        check_sound(model)

    def test_an_expensive_node_that_a_kept_cheap_one_needs_refuses(self):
        made = fusing(
            lambda x=tensor(), w=tensor(): op.Exp(op.Cast(op.MatMul(x, w), to="float32")),
            lambda new, m: new.F(m.x, m.w),
        )
        model = model_of(
            "m = MatMul(x, w) c = Cast<to=1>(m) e = Exp(c) y = Add(e, c)", inputs="float[8,8] x, float[8,8] w"
        )
        [event] = run(model, made)
        assert event.reason == "MatMul 'make_m' would be computed twice: 'c' is also used by Add 'make_y'"

    def test_an_expensive_output_of_the_pattern_may_have_users(self):
        def both(x=tensor(), w=tensor()):
            h = op.MatMul(x, w)
            return op.Exp(h), h

        model = model_of(
            "m = MatMul(x, w) e = Exp(m) y = Add(e, m)", inputs="float[8,8] x, float[8,8] w", outputs="float[8,8] y"
        )
        run(model, fusing(both, lambda new, m: new.MatMulExp(m.x, m.w, outputs=2)))
        assert operators(model) == ["MatMulExp", "Add"]
        check_sound(model)

    def test_an_output_may_be_left_as_it_is(self):
        def both(x=tensor()):
            h = op.Abs(x)
            return op.Exp(h), h

        model = model_of("a = Abs(x) e = Exp(a) y = Add(e, a)")
        run(model, fusing(both, lambda new, m: (new.AbsExp(m.x), None)))
        assert operators(model) == ["Abs", "AbsExp", "Add"]

    def test_a_replacement_that_would_read_its_own_output_is_refused(self):
        def pair(x=tensor(), c=tensor()):
            h = op.Abs(x)
            return op.Exp(h) * c, op.Neg(h)

        made = fusing(pair, lambda new, m: new.Pair(m.x, m.c, outputs=2))
        model = model_of("a = Abs(x) e = Exp(a) n = Neg(a) c = Cos(n) y = Mul(e, c)")
        [event] = run(model, made)
        assert event.reason == "an input of the new node is computed from one of the outputs it replaces"
        assert operators(model) == ["Abs", "Exp", "Neg", "Cos", "Mul"]

    def test_a_replacement_that_would_read_its_own_output_through_a_subgraph_is_refused(self):
        def pair(x=tensor(), c=tensor()):
            h = op.Abs(x)
            return op.Exp(h) * c, op.Neg(h)

        body = """
            a = Abs(x) e = Exp(a) n = Neg(a)
            c = If (b) <
                then_branch = t () => (float[2,3,8] p) { p = Cos(n) },
                else_branch = f () => (float[2,3,8] q) { q = Identity(x) }>
            y = Mul(e, c)
        """
        model = model_of(body, inputs="float[2,3,8] x, bool b")
        [event] = run(model, fusing(pair, lambda new, m: new.Pair(m.x, m.c, outputs=2)))
        assert event.reason == "an input of the new node is computed from one of the outputs it replaces"

    def test_early_users_of_a_second_output_move_behind_the_new_node(self):
        def pair(x=tensor(), c=tensor()):
            h = op.Abs(x)
            return op.Exp(h) * c, op.Neg(h)

        body = """
            a = Abs(x)
            n = Neg(a)
            early = Sin(n)
            later = If (b) <
                then_branch = t () => (float[2,3,8] p) { p = Sin(early) },
                else_branch = f () => (float[2,3,8] q) { q = Identity(n) }>
            c = Cos(w)
            e = Exp(a)
            y = Mul(e, c)
        """
        model = model_of(
            body, inputs="float[2,3,8] x, float[2,3,8] w, bool b", outputs="float[2,3,8] y, float[2,3,8] later"
        )
        run(model, fusing(pair, lambda new, m: new.Pair(m.x, m.c, outputs=2)))
        assert operators(model) == ["Cos", "Pair", "Sin", "If"]
        check_sound(model)

    def test_a_model_whose_nodes_are_out_of_order_is_rewritten_and_sorted(self):
        model = model_of("n = Neg(x) e = Exp(n) y = Abs(e)")
        nodes = list(model.graph)
        model.graph.remove(nodes)
        model.graph.extend(reversed(nodes))
        run(model, neg_exp())
        assert operators(model) == ["NegExp", "Abs"]
        check_sound(model)


class TestSubgraphs:
    BODY = """
        n = {outer}(x)
        y = If (b) <
            then_branch = t () => (float[2,3,8] p) {{ e = Exp(n) p = Abs(e) }},
            else_branch = f () => (float[2,3,8] q) {{ q = Identity(n) }}>
    """

    def test_a_root_in_a_branch_reads_through_to_the_outer_graph(self):
        model = model_of(self.BODY.format(outer="Neg"), inputs="float[2,3,8] x, bool b")
        run(model, neg_exp())
        assert [node.op_type for node in model.graph.all_nodes()] == ["Neg", "If", "NegExp", "Abs", "Identity"]
        branch = model.graph[1].attributes["then_branch"].value
        assert [node.op_type for node in branch] == ["NegExp", "Abs"]
        assert branch[0].inputs[0].name == "x"
        check_sound(model)

    def test_an_expensive_node_of_the_outer_graph_refuses(self):
        model = model_of(self.BODY.format(outer="Softmax"), inputs="float[2,3,8] x, bool b")
        [event] = run(model, fusing(lambda x=tensor(): op.Exp(op.Softmax(x)), lambda new, m: new.F(m.x)))
        assert event.reason.endswith("would be computed twice: it lies in an outer graph")

    def test_a_branch_output_is_replaced(self):
        body = self.BODY.format(outer="Neg").replace("e = Exp(n) p = Abs(e)", "m = Neg(n) p = Exp(m)")
        model = model_of(body, inputs="float[2,3,8] x, bool b")
        run(model, neg_exp())
        branch = model.graph[1].attributes["then_branch"].value
        assert [node.op_type for node in branch] == ["NegExp"]
        assert [value.name for value in branch.outputs] == ["p"]
        check_sound(model)


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


class TestNames:
    def test_a_new_node_is_named_after_the_scope_of_what_it_replaces(self, rms_norm):
        model = model_of(RMS_NORM, constants=RMS_CONSTANTS)
        for node in model.graph:
            node.name = f"/model/layers.0/norm/{node.op_type}_7"
        model.graph[-1].name = "/model/layers.0/Mul"
        run(model, rms_norm)
        [node] = model.graph
        assert node.name == "/model/layers.0/RMSNorm"
        assert node.metadata_props["onnxfuse.fusion"] == "rms_norm"
        assert node.metadata_props["onnxfuse.replaced"].split(",")[:2] == [
            "/model/layers.0/Mul",
            "/model/layers.0/norm/Mul_7",
        ]

    def test_names_are_unique(self):
        model = model_of("n = Neg(x) e = Exp(n) m = Neg(e) f = Exp(m) y = Abs(f)")
        for node in model.graph:
            node.name = f"/m/{node.outputs[0].name}"
        model.graph[-1].name = "/m/NegExp"
        run(model, neg_exp())
        assert [node.name for node in model.graph] == ["/m/NegExp_2", "/m/NegExp_1", "/m/NegExp"]
        check_sound(model)

    def test_the_replaced_names_lead_back_to_the_original_model(self):
        own = op.ns("onnxfuse")
        outer = fusing(lambda x=tensor(): op.Abs(own.NegExp(x)), lambda new, m: new.Whole(m.x), "block")
        model = model_of("n = Neg(x) e = Exp(n) y = Abs(e)")
        for node in model.graph:
            node.name = node.outputs[0].name
        run(model, neg_exp(), outer)
        assert model.graph[0].metadata_props["onnxfuse.replaced"] == "y,e,n"

    def test_a_long_list_of_replaced_names_is_cut_and_counted(self):
        body = "s0 = Neg(x) " + " ".join(f"s{i + 1} = Neg(s{i})" for i in range(40)) + " y = Exp(s40)"
        model = model_of(body)
        for node in model.graph:
            node.name = "n" * 100 + node.outputs[0].name

        def chain(x=tensor()):
            for _ in range(41):
                x = -x
            return op.Exp(x)

        run(model, fusing(chain, lambda new, m: new.F(m.x)))
        replaced = model.graph[0].metadata_props["onnxfuse.replaced"]
        assert len(replaced) < 2100
        assert replaced.endswith(",... (42 nodes)")
        assert all(name in ("n" * 100 + f"s{i}" for i in range(41)) for name in replaced.split(",")[1:-1])


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

    def test_the_body_is_given_a_node_whose_values_have_types(self):
        given = {}

        def body(node, opset):
            for value in (*node.inputs, *node.outputs):
                given[value.name] = (value.dtype, None if value.shape is None else len(value.shape))
            return self.body(node, opset)

        model = model_of("c = Cast<to=10>(x) n = Neg(c) e = Exp(n) y = Cast<to=1>(e)")
        run(model, neg_exp(), body=body)
        assert given == {"c": (ir.DataType.FLOAT16, 3), None: (ir.DataType.FLOAT16, 3)}


class TestNearMisses:
    def test_a_wrong_attribute_is_named_with_the_patterns_own_line(self, attention):
        model = model_of(ATTENTION.replace("axis=-1", "axis=1"), inputs=QKV, outputs="float[2,5,8] y")
        [event] = run(model, attention)
        assert event.message == "Softmax.axis: expected -1, found 1"
        assert (event.fusion, event.matched, event.wanted) == ("attention", 4, 4)
        assert event.source == "return op.MatMul(op.Softmax(scores + mask | scores, axis=-1), v)"
        assert event.where.startswith("test_rewriter.py:")
        assert event.at == "Softmax 'make_p': 'p' float32[2, 5, 5]"

    def test_a_wrong_operator_says_why_each_alternative_failed(self, rms_norm):
        model = model_of(RMS_NORM.replace("ReduceMean", "ReduceSum"), constants=RMS_CONSTANTS)
        [event] = run(model, rms_norm)
        assert event.fusion == "rms_norm"
        failures = dict(event.tried)
        assert len(failures) == 3
        assert failures["Cast(Div(...) | Mul(...))"] == "operator: expected Cast, found Mul"
        assert "operator: expected Div, found Mul" in failures.values()
        assert "operator: expected ReduceMean, found ReduceSum" in failures.values()

    def test_a_capture_is_reported_at_the_line_that_uses_it(self, rms_norm):
        model = model_of(RMS_NORM.replace("Add(mean, eps)", "Add(mean, w)"), constants=RMS_CONSTANTS)
        [event] = run(model, rms_norm)
        assert event.message == "eps: expected constant scalar, found 'w' float32[8]"
        assert event.source == "rms = op.Sqrt(mean_square + eps)"

    def test_a_value_that_should_be_another_one_is_named(self, rms_norm):
        model = model_of(
            RMS_NORM.replace("Mul(x, inverse)", "Mul(z, inverse)"),
            inputs="float[2,3,8] x, float[2,3,8] z, float[8] w",
            constants=RMS_CONSTANTS,
        )
        [event] = run(model, rms_norm)
        assert {event.expected, event.found} == {"'x' float32[2, 3, 8]", "'z' float32[2, 3, 8]"}

    def test_a_missing_second_output_is_named(self):
        def pair(x=tensor()):
            h = op.Abs(op.Exp(x))
            return op.Cos(h), op.Sin(h)

        made = fusing(pair, lambda new, m: new.F(m.x, outputs=2))
        [event] = run(model_of("e = Exp(x) a = Abs(e) y = Cos(a)"), made)
        assert event.message == "output: expected a further output, found none in reach"

    def test_a_place_without_any_characteristic_operator_is_no_near_miss(self):
        """Products are everywhere: without the Sigmoid two of three operators say nothing."""
        gated = fusing(lambda x=tensor(), u=tensor(): x * op.Sigmoid(x) * u, lambda new, m: new.SwiGLU(m.x, m.u))
        assert run(model_of("p = Mul(x, w) y = Mul(p, w)"), gated) == []
        assert len(run(model_of("s = Sigmoid(w) p = Mul(x, s) y = Mul(p, w)"), gated)) == 1

    def test_less_than_half_is_no_near_miss(self, rms_norm):
        model = model_of("h = Div(x, w) y = Mul(h, w)")
        assert run(model, rms_norm) == []

    def test_what_was_fused_or_refused_is_no_near_miss(self, rms_norm):
        assert len(run(model_of(RMS_NORM, constants=RMS_CONSTANTS), rms_norm)) == 1

        @rms_norm.check
        def never(m):
            yield False, "never"

        [event] = run(model_of(RMS_NORM, constants=RMS_CONSTANTS), rms_norm)
        assert event.outcome == "refused"

    def test_one_near_miss_a_place(self, attention):
        body = """
            t = Transpose<perm=[0,2,1]>(k) s = MatMul(q, t) p = Softmax<axis=1>(s) a = MatMul(p, v)
            t2 = Transpose<perm=[0,2,1]>(a) s2 = MatMul(q, t2) p2 = Softmax<axis=1>(s2) y = MatMul(p2, v)
        """
        events = run(model_of(body, inputs=QKV, outputs="float[2,5,8] y"), attention)
        assert [event.message for event in events] == ["Softmax.axis: expected -1, found 1"] * 2

    def test_near_misses_can_be_left_out(self, attention):
        model = model_of(ATTENTION.replace("axis=-1", "axis=1"), inputs=QKV, outputs="float[2,5,8] y")
        assert run(model, attention, explain=False) == []

    def test_events_are_plain_data(self, attention):
        model = model_of(ATTENTION.replace("axis=-1", "axis=1"), inputs=QKV, outputs="float[2,5,8] y")
        [event] = run(model, attention)
        data = event.to_dict()
        assert data["outcome"] == "near miss"
        assert all(isinstance(value, (str, int, list)) for value in data.values())


def _random_model(rng, size=40):
    values = [ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([3])) for name in "ab"]
    inputs, nodes = list(values), []
    for index in range(size):
        kind = rng.choice(["Neg", "Abs", "Tanh", "Add", "Mul", "Sub", "Max", "Sin"])
        arity = 1 if kind in ("Neg", "Abs", "Tanh", "Sin") else 2
        operands = [rng.choice(values[-5:]) for _ in range(arity)]
        node = ir.Node("", kind, operands, name=f"/m/l{index % 3}/{kind}_{index}")
        node.outputs[0].name = f"v{index}"
        nodes.append(node)
        values.append(node.outputs[0])
    outputs = [values[-1], *rng.sample([node.outputs[0] for node in nodes[:-1]], 3)]
    for value in outputs:
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([3])
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": 18}, name="random")
    return ir.Model(graph, ir_version=10)


def _algebra():
    """Fusions into standard operators that keep every value, with one and two outputs and overlapping matches."""

    def with_inner(x=tensor(), c=tensor()):
        h = x * c
        return op.Tanh(h), h

    def two_users(x=tensor(), a=tensor(), b=tensor()):
        h = op.Neg(x)
        return h + a, h * b

    def rewrite_two(new, m):
        h = new.onnx.Mul(m.x, np.float32(-1))
        return new.onnx.Add(m.a, h), new.onnx.Mul(m.b, h)

    def least_of_negatives(new, m):
        left, right = m.root.inputs
        return new.onnx.Neg(new.onnx.Min(new.onnx.Neg(left), new.onnx.Neg(right)))

    def rewrite_inner(new, m):
        h = new.onnx.Max(new.onnx.Mul(m.c, m.x))
        return new.onnx.Tanh(h), h

    return [
        fusing(lambda x=tensor(): op.Abs(op.Neg(x)), lambda new, m: new.onnx.Abs(m.x), "cleanup"),
        fusing(lambda x=tensor(): op.Neg(-x), lambda new, m: m.x, "cleanup"),
        fusing(lambda x=tensor(), y=tensor(): x + (-y), lambda new, m: new.onnx.Sub(m.x, m.y)),
        fusing(lambda x=tensor(), y=tensor(): op.Max(any_of(x, op.Abs(x)), op.Abs(y)), least_of_negatives, "norm"),
        fusing(with_inner, rewrite_inner, "rotary"),
        fusing(two_users, rewrite_two, "attention"),
    ]


class TestProperties:
    @pytest.mark.parametrize("seed", range(60))
    def test_rewriting_a_random_graph_keeps_every_output(self, seed):
        rng = random.Random(seed)
        model = _random_model(rng)
        generator = np.random.default_rng(seed)
        feeds = {name: generator.standard_normal(3).astype(np.float32) for name in "ab"}
        before = evaluate(model, feeds)
        nodes = rng.sample(list(model.graph), len(model.graph))
        model.graph.remove(nodes)
        model.graph.extend(nodes)
        names = [value.name for value in model.graph.outputs]
        events = run(model, *_algebra())
        check_sound(model)
        assert [value.name for value in model.graph.outputs] == names
        after = evaluate(model, feeds)
        # Reassociated products and sums of at most 40 float32 operations on numbers of size 1.
        for was, now in zip(before, after, strict=True):
            np.testing.assert_allclose(now, was, rtol=1e-5, atol=1e-6)
        assert any(isinstance(event, Fused) for event in events)
