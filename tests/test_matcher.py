"""Matching: what agrees, what does not, and that no order or alternative is ever lost."""

import onnx_ir as ir
import pytest
from graphs import count, matches, model_of, pattern

from onnxfuse.dsl import constant, maybe, one_of, op, scalar, tensor


class TestIdentityOfValues:
    def test_the_same_variable_is_the_same_value(self):
        def square(x=tensor()):
            h = op.Relu(x)
            return h * h

        assert count(square, "r = Relu(x) y = Mul(r, r)") == 1
        assert count(square, "r = Relu(x) q = Relu(x) y = Mul(r, q)") == 0

    def test_two_variables_may_be_one_value(self):
        assert count(lambda a=tensor(), b=tensor(): a + b, "y = Add(x, x)") == 1

    def test_an_alternative_used_twice_is_one_value(self):
        def either(x=tensor()):
            h = op.Relu(x) | op.Abs(x)
            return h * op.Exp(h)

        assert count(either, "a = Abs(x) e = Exp(a) y = Mul(e, a)") == 1
        assert count(either, "a = Abs(x) r = Relu(x) e = Exp(r) y = Mul(e, a)") == 0

    def test_an_alternative_inside_a_longer_one_stays_one_value(self):
        def chained(x=tensor(), z=tensor()):
            h = op.Relu(x) | op.Abs(x)
            k = h | op.Neg(z)
            return k - h

        assert count(chained, "a = Abs(x) y = Sub(a, a)") == 1
        assert count(chained, "a = Abs(x) r = Relu(x) y = Sub(r, a)") == 0


class TestBacktracking:
    def test_an_alternative_that_matches_at_first_is_given_up_when_the_rest_fails(self):
        """A committed choice takes Sigmoid(x) for the left operand of Mul(s, s) and then fails."""

        def gated(x=tensor()):
            return (op.Sigmoid(x) | x) * x

        made = pattern(gated)
        model = model_of("s = Sigmoid(x) y = Mul(s, s)")
        [found] = matches(made, model)
        assert found.x.value.name == "s"

    def test_alternatives_inside_alternatives_backtrack(self):
        def nested(x=tensor(), c=tensor()):
            inner = maybe.Cast(x) | op.Relu(x)
            return (op.Exp(inner) | op.Exp(inner + c)) * x

        made = pattern(nested)
        [found] = matches(made, model_of("a = Add(x, w) e = Exp(a) y = Mul(e, x)"))
        assert (found.x.value.name, found.c.value.name) == ("x", "w")

    def test_alternatives_at_the_root(self):
        def root(x=tensor()):
            return maybe.Cast(op.Relu(x), to="float16") | op.Neg(x)

        assert count(root, "r = Relu(x) y = Cast<to=10>(r)", outputs="float16[2,3,8] y") == 1
        assert count(root, "y = Relu(x)") == 1
        assert count(root, "y = Neg(x)") == 1
        assert count(root, "y = Abs(x)") == 0

    def test_operand_order_is_reconsidered_when_the_rest_fails(self):
        def product(a=tensor(), b=tensor()):
            return op.Exp(a * b) - a

        made = pattern(product)
        for left, right in (("x", "w"), ("w", "x")):
            model = model_of(f"p = Mul({left}, {right}) e = Exp(p) y = Sub(e, w)")
            assert [m.a.value.name for m in matches(made, model)] == ["w"]

    def test_every_solution_is_offered_in_a_fixed_order(self):
        made = pattern(lambda a=tensor(), b=tensor(): a + b)
        assert [m.a.value.name for m in matches(made, model_of("y = Add(x, w)"))] == ["x", "w"]

    def test_bindings_of_a_given_up_alternative_are_forgotten(self):
        def forgetful(x=tensor(), left=tensor(), right=tensor()):
            return one_of("way", first=op.Exp(left) * op.Abs(x), second=op.Exp(right) * op.Neg(x))

        [found] = matches(pattern(forgetful), model_of("e = Exp(w) n = Neg(x) y = Mul(e, n)"))
        assert (found.way, found.left, found.right.value.name) == ("second", None, "w")
        assert [node.op_type for node in found.nodes] == ["Mul", "Exp", "Neg"]

    @pytest.mark.parametrize("commutative", ["Add", "Mul", "Min", "Max"])
    def test_commutative_operators_match_in_both_orders(self, commutative):
        def both(x=tensor(), c=tensor()):
            return op.any(commutative)(op.Relu(x), c)

        assert count(both, f"r = Relu(x) y = {commutative}(r, w)") == 1
        assert count(both, f"r = Relu(x) y = {commutative}(w, r)") == 1

    @pytest.mark.parametrize("ordered", ["Sub", "Div", "Pow", "MatMul"])
    def test_other_operators_match_in_their_order_only(self, ordered):
        def one_way(x=tensor(), c=tensor()):
            return op.any(ordered)(op.Relu(x), c)

        assert count(one_way, f"r = Relu(x) y = {ordered}(r, r)") == 1
        assert count(one_way, f"r = Relu(x) y = {ordered}(w, r)") == 0


class TestConditions:
    def test_a_condition_inside_a_backtracking_alternative_is_called(self):
        """A known matcher loses it: a condition that always refuses still let the graph be rewritten."""
        asked = []

        def refuse(value, facts):
            asked.append(value.name)
            return False

        def guarded(x=tensor(), c=tensor()):
            return (op.Relu(x).where(refuse, "never") | op.Abs(x).where(refuse, "never")) * c

        assert count(guarded, "r = Relu(x) y = Mul(w, r)") == 0
        assert count(guarded, "a = Abs(x) r = Relu(x) y = Mul(a, r)") == 0
        assert asked == ["r", "a", "r"]

    def test_a_condition_chooses_the_alternative(self):
        def chosen(x=tensor()):
            first = op.Relu(x).where(lambda value, facts: value.producer().name == "wanted", "not the wanted one")
            return one_of("way", guarded=op.Exp(first), free=op.Exp(op.Relu(x)))

        [found] = matches(pattern(chosen), model_of("r = Relu(x) y = Exp(r)"))
        assert found.way == "free"

    def test_a_condition_on_a_capture_sees_facts(self):
        def known(x=tensor().where(lambda value, facts: facts.shape(value)[-1] == 8, "not eight wide")):
            return op.Relu(x)

        assert count(known, "y = Relu(x)") == 1
        assert count(known, "y = Relu(x)", inputs="float[2,3,4] x", outputs="float[2,3,4] y") == 0

    def test_a_condition_at_the_root(self):
        made = pattern(lambda x=tensor(): op.Relu(x).where(lambda value, facts: False, "never"))
        assert not matches(made, model_of("y = Relu(x)"))


class TestCaptures:
    def test_a_capture_met_only_in_another_alternative_is_none(self):
        made = pattern(lambda x=tensor(), bias=tensor(): op.Relu(x + bias) | op.Relu(x))
        [with_bias, without] = matches(made, model_of("s = Add(x, w) y = Relu(s)"))[::2]
        assert with_bias.bias.value.name == "w"
        assert (without.bias, without.x.value.name) == (None, "s")

    def test_scalars_are_numbers_whatever_their_rank_and_place(self):
        made = pattern(lambda x=tensor(), c=scalar(): x * c)
        for constants, body in (
            ("float c = {0.5}", "y = Mul(c, x)"),
            ("float[1] c = {0.5}", "y = Mul(x, c)"),
            ("float[1,1,1] c = {0.5}", "y = Mul(x, c)"),
            ("", "c = Constant<value_float = 0.5>() y = Mul(x, c)"),
        ):
            [found] = matches(made, model_of(body, constants=constants))
            assert (found.c, found.captured["c"].value.name) == (0.5, "c")

    def test_a_scalar_is_neither_a_longer_constant_nor_a_run_time_value(self):
        assert count(lambda x=tensor(), c=scalar(): x * c, "y = Mul(x, w)") == 0
        assert count(lambda x=tensor(), c=scalar(): x * c, "y = Mul(x, c)", constants="float[2] c = {1, 1}") == 0

    def test_an_initializer_that_an_input_overrides_is_no_constant(self):
        text = (
            '<ir_version: 8, opset_import: ["" : 18]> g (float[2] x, float c = {2.0}) => (float[2] y) { y = Mul(x, c) }'
        )
        model = ir.from_onnx_text(text)
        assert len(model.graph.inputs) == 2
        assert not matches(pattern(lambda x=tensor(), c=scalar(): x * c), model)

    def test_a_constant_capture_takes_any_size_but_no_run_time_value(self):
        made = pattern(lambda x=tensor(), c=constant("D"): op.Sub(x, c))
        assert len(matches(made, model_of("y = Sub(x, c)", constants="float[2] c = {1, 2}"))) == 1
        assert not matches(made, model_of("y = Sub(x, w)"))

    def test_a_misspelt_capture_is_named(self):
        [found] = matches(pattern(lambda x=tensor(): op.Relu(x)), model_of("y = Relu(x)"))
        with pytest.raises(AttributeError, match="captures no 'X'; it has x"):
            _ = found.X


class TestInputsAndOutputs:
    def test_an_input_the_pattern_does_not_name_refuses(self):
        assert count(lambda x=tensor(): op.Clip(x), "y = Clip(x, c)", constants="float c = {1}") == 0
        assert count(lambda x=tensor(): op.Clip(x, ...), "y = Clip(x, c)", constants="float c = {1}") == 1

    def test_an_optional_input(self):
        def biased(a=tensor(), b=tensor(), c=tensor()):
            return op.Gemm(a, b, c | None)

        sizes = {"inputs": "float[4,4] a, float[4,4] b, float[4] c", "outputs": "float[4,4] y"}
        made = pattern(biased)
        [found] = matches(made, model_of("y = Gemm(a, b, c)", **sizes))
        assert found.c.value.name == "c"
        for body in ("y = Gemm(a, b)", "y = Gemm(a, b, )"):
            [found] = matches(made, model_of(body, **sizes))
            assert found.c is None

    def test_any_of_several_operators(self):
        def either(x=tensor()):
            return op.Relu(op.any("Identity", "Dropout")(x, ...))

        assert count(either, "i = Identity(x) y = Relu(i)") == 1
        assert count(either, "d = Dropout(x, r) y = Relu(d)", constants="float r = {0.5}") == 1
        assert count(either, "d = Neg(x) y = Relu(d)") == 0

    def test_an_operator_of_another_domain_is_another_operator(self):
        assert count(lambda x=tensor(): op.ns("com.microsoft").Gelu(x), "y = Gelu(x)", opset=20) == 0
        assert count(lambda x=tensor(): op.Gelu(x), "y = com.microsoft.Gelu(x)", opset=20) == 0

    def test_outputs_nobody_asks_for_do_not_matter(self):
        options = {"outputs": "float[2,3,8] y", "opset": 17}
        body = "n, mean, inverse = LayerNormalization(x, w) y = Relu(n)"
        assert count(lambda x=tensor(), w=tensor(): op.Relu(op.LayerNormalization(x, w)), body, **options) == 1

    def test_the_outputs_of_one_node_are_not_those_of_another(self):
        def halves(x=tensor()):
            low, high = op.Split(x, axis=-1, outputs=2)
            return low * high

        assert count(halves, "a, b = Split<axis=2>(x) y = Mul(b, a)", opset=17) == 1
        assert count(halves, "a, b = Split<axis=2>(x) c, d = Split<axis=2>(x) y = Mul(a, d)", opset=17) == 0
        assert count(halves, "a, b = Split<axis=2>(x) y = Mul(a, a)", opset=17) == 0


class TestSeveralOutputs:
    def test_an_inner_value_is_an_output_too(self):
        def inner(x=tensor()):
            h = op.Relu(x)
            return op.Exp(h), h

        [found] = matches(pattern(inner), model_of("r = Relu(x) y = Exp(r)"))
        assert [value.name for value in found.outputs] == ["y", "r"]

    def test_a_second_output_is_found_through_what_they_share(self):
        def table(angle=tensor()):
            wide = op.Concat(angle, angle, axis=-1)
            return op.Cos(wide), op.Sin(wide)

        body = "c = Concat<axis=-1>(x, x) d = Concat<axis=-1>(w, w) s = Sin(c) t = Sin(d) y = Cos(c)"
        [found] = matches(pattern(table), model_of(body, inputs="float[4] x, float[4] w", outputs="float[8] y"))
        assert [value.name for value in found.outputs] == ["y", "s"]

    def test_a_second_output_behind_optional_nodes(self):
        def table(angle=tensor(), scale=scalar()):
            cos, sin = op.Cos(angle), op.Sin(angle)
            return cos * scale | cos, maybe.Cast(sin * scale | sin)

        body = "c = Cos(x) y = Mul(c, k) s = Sin(x) t = Mul(k, s) u = Cast<to=1>(t)"
        found = matches(pattern(table), model_of(body, constants="float k = {2}"))
        assert ["y", "u"] in [[value.name for value in m.outputs] for m in found]

    def test_all_places_of_a_second_output_are_tried(self):
        def halves(x=tensor(), a=tensor(), b=tensor()):
            low, high = op.Split(x, axis=-1, outputs=2)
            return op.Exp(low) * a, op.Exp(high) * b

        body = "l, h = Split<axis=2>(x) e = Exp(l) y = Mul(e, w) f = Exp(h) n = Neg(f) z = Mul(w, f)"
        model = model_of(body, inputs="float[2,3,8] x, float[4] w", outputs="float[2,3,4] y", opset=17)
        assert {m.outputs[1].name for m in matches(pattern(halves), model)} == {"z"}

    def test_without_the_second_output_there_is_no_match(self):
        assert count(lambda x=tensor(): (op.Cos(x), op.Sin(x)), "y = Cos(x)") == 0

    def test_two_outputs_are_two_values(self):
        def twice(x=tensor(), a=tensor(), b=tensor()):
            h = op.Relu(x)
            return h + a, h + b

        assert count(twice, "r = Relu(x) y = Add(r, w)") == 0
        assert count(twice, "r = Relu(x) y = Add(r, w) z = Add(r, x)") == 1


class TestSubgraphs:
    def test_values_of_outer_graphs_are_matched_through(self):
        body = """
            r = Relu(x)
            y = If (b) <
                then_branch = t () => (float[2,3,8] p) { p = Mul(r, w) },
                else_branch = e () => (float[2,3,8] q) { q = Identity(x) }>
        """
        model = model_of(body, inputs="float[2,3,8] x, float[8] w, bool b")
        [found] = matches(pattern(lambda x=tensor(), c=tensor(): op.Relu(x) * c), model, "p")
        assert found.x.value.name == "x"
