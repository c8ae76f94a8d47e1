"""Nothing is lost: what stays beside a fused node, what refuses, how things are named."""

import onnx_ir as ir
import pytest
from graphs import (
    ATTENTION,
    QKV,
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

from onnxfuse.dsl import maybe, op, tensor
from onnxfuse.explain import Refused


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

    def test_a_replaced_node_that_another_of_its_outputs_keeps_is_not_computed_twice(self):
        def attend(q=tensor(), k=tensor(), v=tensor()):
            return op.Attention(q, k, v)

        made = fusing(attend, lambda new, m: new.Attention(m.q, m.k, m.v))
        given = ", ".join(f"float[B,2,S,8] {name}" for name in "qkv")
        body = "y, a, b, products = Attention<qk_matmul_output_mode=0>(q, k, v)"
        model = model_of(body, given, "float[B,2,S,8] y, float[B,2,S,L] products", opset=23)
        (refused,) = (event for event in run(model, made) if isinstance(event, Refused))
        assert refused.reason == "Attention 'make_y' would be computed twice: 'products' is also a graph output"
        assert len(model.graph) == 1

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

    def test_an_expensive_node_that_the_new_node_reads_refuses(self):
        def twice(x=tensor(), c=tensor()):
            return op.Exp(op.Softmax(x)) * c

        model = model_of("s = Softmax(x) e = Exp(s) y = Mul(e, s)")
        [event] = run(model, fusing(twice, lambda new, m: new.F(m.x, m.c)))
        assert event.reason == "Softmax 'make_s' would be computed twice: the new node reads it too"

    def test_an_input_of_the_model_cannot_be_replaced(self):
        def both(x=tensor()):
            h = maybe.Cast(x)
            return op.Exp(h), h

        model = model_of("e = Exp(x) y = Add(e, x)")
        [event] = run(model, fusing(both, lambda new, m: new.F(m.x, outputs=2)))
        assert event.reason == "'x' is an input or constant of the model and cannot be replaced"

    def test_what_stands_before_the_pattern_cannot_be_replaced(self):
        def both(x=tensor()):
            h = maybe.Cast(x)
            return op.Exp(h), h

        model = model_of("a = Abs(x) e = Exp(a) y = Add(e, a)")
        [event] = run(model, fusing(both, lambda new, m: new.F(m.x, outputs=2)))
        assert event.reason == "an input of the new node is computed from one of the outputs it replaces"

    def test_an_output_may_be_left_as_it_is(self):
        def both(x=tensor()):
            h = op.Abs(x)
            return op.Exp(h), h

        model = model_of("a = Abs(x) e = Exp(a) y = Add(e, a)")
        run(model, fusing(both, lambda new, m: (new.AbsExp(m.x), None)))
        assert operators(model) == ["Abs", "AbsExp", "Add"]

    def test_an_expensive_output_may_be_left_as_it_is(self):
        def both(x=tensor()):
            h = op.Softmax(x)
            return op.Exp(h), h

        model = model_of("s = Softmax(x) e = Exp(s) y = Add(e, s)")
        run(model, fusing(both, lambda new, m: (new.SoftmaxExp(m.x), None)))
        assert operators(model) == ["Softmax", "SoftmaxExp", "Add"]

    def test_a_node_whose_other_output_is_needed_stays(self):
        def low(x=tensor()):
            return op.Split(x, axis=-1, outputs=2)[0]

        model = model_of("l, h = Split<axis=-1, num_outputs=2>(x) y = Mul(l, h)", outputs="float[2,3,4] y")
        run(model, fusing(low, lambda new, m: new.Low(m.x)))
        assert operators(model) == ["Low", "Split", "Mul"]
        assert [value.name for value in model.graph[1].outputs] == ["l_unfused", "h"]
        check_sound(model)

    def test_a_dead_node_that_was_read_twice_is_removed_once(self):
        def product(x=tensor(), c=tensor()):
            return op.Exp(x * c)

        model = model_of("l, h = Split<axis=-1, num_outputs=2>(x) p = Mul(l, h) y = Exp(p)", outputs="float[2,3,4] y")
        run(model, fusing(product, lambda new, m: new.F(m.x.value.producer().inputs[0])))
        assert operators(model) == ["F"]

    def test_a_default_that_an_input_overrides_stays(self):
        text = '<ir_version: 10, opset_import: ["" : 18]> g (float[2] x, float[2] c = {1, 2}) => (float[2] y) {body}'
        model = ir.from_onnx_text(text.replace("{body}", "{ z = Sub(c, c) n = Neg(x) s = Add(n, z) y = Exp(s) }"))
        run(model, fusing(lambda x=tensor(), z=tensor(): op.Exp(op.Neg(x) + z), lambda new, m: new.F(m.x)))
        assert operators(model) == ["F"]
        assert "c" in model.graph.initializers

    def test_inputs_that_were_made_together_both_stand_before_their_reader(self):
        def two(x=tensor()):
            return op.Neg(op.Abs(x))

        def rewrite_two(new, m):
            first = new.onnx.Sin(m.x)
            return new.onnx.Cos(first)

        def pair(x=tensor(), a=tensor(), b=tensor()):
            h = op.Relu(x)
            return op.Exp(h), op.Sub(op.Tanh(h) * a, b)

        body = "r = Relu(x) e = Exp(r) a = Abs(w) n = Neg(a) t = Tanh(r) p = Mul(t, n) q = Sub(p, n) y = Add(q, e)"
        model = model_of(body, inputs="float[2,3,8] x, float[2,3,8] w")

        def rewrite_pair(new, m):
            cos = m.a.value.producer()
            return new.Pair(cos.inputs[0], m.a, m.x, outputs=2)

        run(model, fusing(two, rewrite_two), fusing(pair, rewrite_pair, "norm"))
        assert operators(model) == ["Sin", "Cos", "Pair", "Add"]
        check_sound(model)

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

    def test_an_expensive_node_of_the_outer_graph_refuses_though_only_the_branch_reads_it(self):
        """In the body of a loop it would be computed again in every round."""
        body = self.BODY.format(outer="Softmax").replace("q = Identity(n)", "q = Identity(x)")
        model = model_of(body, inputs="float[2,3,8] x, bool b")
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

    def test_the_scope_of_a_dynamo_export_is_in_its_metadata(self):
        model = model_of("n = Neg(x) y = Exp(n)")
        paths = ("['', 'm', 'm.layers.0', 'm.layers.0.act', 'neg']", "['', 'm', 'm.layers.0', 'exp']")
        for node, scopes in zip(model.graph, paths, strict=True):
            node.metadata_props["pkg.torch.onnx.name_scopes"] = scopes
        run(model, neg_exp())
        assert model.graph[0].name == "/m/layers.0/NegExp"

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
