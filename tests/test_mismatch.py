"""Numbers, parameters and dimensions agree by meaning, however an exporter spells them."""

import numpy as np
import onnx_ir as ir
import pytest
from graphs import count, matches, model_of, pattern

from onnxfuse.dsl import attr, op, scalar, tensor


class TestNumbers:
    @pytest.mark.parametrize(
        ("constants", "number", "agrees"),
        [
            ("float c = {0.70710678}", 2**-0.5, True),
            ("float c = {0.70709}", 2**-0.5, False),
            ("float[1,1] c = {2.0}", 2, True),
            ("float c = {2.0}", 2, True),
            ("float c = {0.0}", 0, True),
            ("float c = {0.00000001}", 0, False),
            ("float[2] c = {2.0, 2.0}", 2, False),
            ("float c = {-2.0}", 2, False),
        ],
    )
    def test_numbers_agree_to_five_digits_in_any_one_element_tensor(self, constants, number, agrees):
        assert count(lambda x=tensor(): x * number, "y = Mul(x, c)", constants=constants) == agrees

    @pytest.mark.parametrize("dtype", [np.float16, ir.DataType.BFLOAT16.numpy()])
    def test_a_number_agrees_with_its_rounding_to_half_precision(self, dtype):
        model = model_of("y = Mul(x, w)")
        model.graph.inputs.pop()
        [node] = model.graph
        for number, agrees in ((0.044715, 1), (0.0453, 0)):
            value = ir.Value(name="c", const_value=ir.tensor(np.array(number, dtype=dtype)))
            node.replace_input_with(1, value)
            assert len(matches(pattern(lambda x=tensor(): x * 0.044715), model)) == agrees

    def test_integers_agree_exactly(self):
        def shifted(x=tensor()):
            return x + 1_000_000

        options = {"inputs": "int64[2] x", "outputs": "int64[2] y"}
        assert count(shifted, "y = Add(x, c)", constants="int64 c = {1000000}", **options) == 1
        assert count(shifted, "y = Add(x, c)", constants="int64 c = {1000001}", **options) == 0

    def test_a_list_is_a_constant_of_that_shape(self):
        def reshaped(x=tensor()):
            return op.Reshape(x, [0, 0, -1])

        assert count(reshaped, "y = Reshape(x, s)", constants="int64[3] s = {0, 0, -1}") == 1
        assert count(reshaped, "y = Reshape(x, s)", constants="int64[3] s = {0, 0, 8}") == 0
        assert count(reshaped, "y = Reshape(x, s)", constants="int64[2] s = {0, -1}") == 0
        assert count(reshaped, "y = Reshape(x, s)", constants="int64[1,3] s = {0, 0, -1}") == 0


class TestParameters:
    def test_an_axis_counts_from_either_end(self):
        last = pattern(lambda x=tensor(): op.Softmax(x, axis=-1))
        assert len(matches(last, model_of("y = Softmax<axis=2>(x)"))) == 1
        assert len(matches(last, model_of("y = Softmax<axis=-1>(x)"))) == 1
        assert len(matches(last, model_of("y = Softmax(x)"))) == 1
        assert not matches(last, model_of("y = Softmax<axis=1>(x)"))

    def test_the_default_is_that_of_the_models_opset(self):
        """Softmax without an axis means axis 1 before opset 13."""
        assert count(lambda x=tensor(): op.Softmax(x, axis=-1), "y = Softmax(x)", opset=12) == 0
        assert count(lambda x=tensor(): op.Softmax(x, axis=1), "y = Softmax(x)", opset=12) == 1

    def test_axes_are_one_parameter_as_attribute_or_input(self):
        def mean(x=tensor()):
            return op.ReduceMean(x, axes=[-1], keepdims=1)

        sizes = {"outputs": "float[2,3,1] y"}
        assert count(mean, "y = ReduceMean<axes=[-1]>(x)", opset=17, **sizes) == 1
        assert count(mean, "y = ReduceMean<axes=[2], keepdims=1>(x)", opset=17, **sizes) == 1
        assert count(mean, "y = ReduceMean(x, a)", constants="int64[1] a = {-1}", **sizes) == 1
        assert count(mean, "a = Constant<value_ints=[2]>() y = ReduceMean<keepdims=1>(x, a)", **sizes) == 1
        assert count(mean, "y = ReduceMean(x, a)", constants="int64[1] a = {1}", **sizes) == 0
        assert count(mean, "y = ReduceMean<keepdims=0>(x, a)", constants="int64[1] a = {-1}", **sizes) == 0
        assert count(mean, "y = ReduceMean(x)", **sizes) == 0

    def test_axes_computed_at_run_time_do_not_match(self):
        options = {"inputs": "float[2,3,8] x, int64[1] a", "outputs": "float[2,3,1] y"}
        assert count(lambda x=tensor(): op.ReduceMean(x, axes=[-1]), "y = ReduceMean(x, a)", **options) == 0

    def test_an_input_computed_at_run_time_is_not_the_default(self):
        options = {"inputs": "float[2,1,8] x, int64[1] a", "outputs": "float[2,8] y"}
        assert count(lambda x=tensor(): op.Squeeze(x), "y = Squeeze(x)", **options) == 1
        assert count(lambda x=tensor(): op.Squeeze(x), "y = Squeeze(x, a)", **options) == 0
        assert count(lambda x=tensor(): op.Squeeze(x, axes=None), "y = Squeeze(x, a)", **options) == 0

    def test_none_is_the_default(self):
        def halves(x=tensor()):
            return op.Split(x, axis=-1, split=None, outputs=2)[1]

        sizes = {"outputs": "float[2,3,4] y"}
        assert count(halves, "l, y = Split<axis=-1, num_outputs=2>(x)", **sizes) == 1
        assert count(halves, "l, y = Split<axis=-1>(x, s)", constants="int64[2] s = {4, 4}", **sizes) == 1
        assert count(halves, "l, y = Split<axis=-1>(x, s)", constants="int64[2] s = {6, 2}", **sizes) == 0

    def test_axes_of_unsqueeze_count_in_the_output(self):
        def heads(x=tensor()):
            return op.Unsqueeze(x, axes=[-1, 1])

        options = {"outputs": "float[2,1,3,8,1] y"}
        assert count(heads, "y = Unsqueeze(x, a)", constants="int64[2] a = {1, 4}", **options) == 1
        assert count(heads, "y = Unsqueeze(x, a)", constants="int64[2] a = {1, 3}", **options) == 0

    def test_a_parameter_left_out_of_the_pattern_must_have_its_default(self):
        def product(a=tensor(), b=tensor()):
            return op.Gemm(a, b)

        sizes = {"inputs": "float[4,4] a, float[4,4] b", "outputs": "float[4,4] y"}
        assert count(product, "y = Gemm(a, b)", **sizes) == 1
        assert count(product, "y = Gemm<alpha=1.0, transB=0>(a, b)", **sizes) == 1
        assert count(product, "y = Gemm<transB=1>(a, b)", **sizes) == 0
        assert count(lambda x=tensor(): op.Gelu(x), 'y = Gelu<approximate="tanh">(x)', opset=20) == 0
        assert (
            count(lambda x=tensor(): op.Gelu(x, approximate="tanh"), 'y = Gelu<approximate="tanh">(x)', opset=20) == 1
        )

    def test_a_slice_in_all_its_spellings(self):
        def lower(x=tensor()):
            return op.Slice(x, starts=[0], ends=[4], axes=[-1])

        sizes = {"outputs": "float[2,3,4] y"}
        bounds = "int64[1] s = {0}, int64[1] e = {4}, int64[1] a = {2}, int64[1] one = {1}, int64[1] two = {2}"
        assert count(lower, "y = Slice(x, s, e, a)", constants=bounds, **sizes) == 1
        assert count(lower, "y = Slice(x, s, e, a, one)", constants=bounds, **sizes) == 1
        assert count(lower, "y = Slice(x, s, e, a, two)", constants=bounds, **sizes) == 0
        assert count(lower, "y = Slice(x, s, e)", constants=bounds, **sizes) == 0
        assert (
            count(
                lambda x=tensor(): op.Slice(x, starts=[0], ends=[4], axes=[0]),
                "y = Slice(x, s, e)",
                constants=bounds,
                **sizes,
            )
            == 1
        )

    def test_equal_parts_are_the_default_of_split(self):
        def halves(x=tensor()):
            low, high = op.Split(x, axis=-1, outputs=2)
            return op.Concat(-high, low, axis=-1)

        rest = "n = Neg(h) y = Concat<axis=2>(n, l)"
        assert count(halves, f"l, h = Split<axis=2>(x) {rest}", opset=17) == 1
        assert count(halves, f"l, h = Split<axis=-1, num_outputs=2>(x) {rest}") == 1
        assert count(halves, f"l, h = Split<axis=2>(x, s) {rest}", constants="int64[2] s = {4, 4}") == 1
        assert count(halves, f"l, h = Split<axis=2>(x, s) {rest}", constants="int64[2] s = {2, 6}") == 0
        assert count(halves, f"l, h, m, k = Split<axis=2, num_outputs=4>(x) {rest}") == 0

    def test_dtype_names_sets_and_captured_parameters(self):
        cast = "y = Cast<to=10>(x)"
        sizes = {"outputs": "float16[2,3,8] y"}
        assert count(lambda x=tensor(): op.Cast(x, to="float16"), cast, **sizes) == 1
        assert count(lambda x=tensor(): op.Cast(x, to="bfloat16"), cast, **sizes) == 0
        assert count(lambda x=tensor(): op.Cast(x, to={"float16", "bfloat16"}), cast, **sizes) == 1
        [found] = matches(
            pattern(lambda x=tensor(): op.Softmax(x, axis=attr("axis"))), model_of("y = Softmax<axis=1>(x)")
        )
        assert found.axis == 1
        [found] = matches(pattern(lambda x=tensor(): op.Transpose(x, perm=attr("perm"))), model_of("y = Transpose(x)"))
        assert found.perm == (2, 1, 0)

    def test_a_parameter_captured_twice_is_the_same(self):
        def twice(x=tensor()):
            return op.Softmax(op.LogSoftmax(x, axis=attr("axis")), axis=attr("axis"))

        assert count(twice, "l = LogSoftmax<axis=1>(x) y = Softmax<axis=1>(l)") == 1
        assert count(twice, "l = LogSoftmax<axis=1>(x) y = Softmax<axis=2>(l)") == 0

    def test_a_parameter_may_be_a_pattern_for_its_input(self):
        def clipped(x=tensor(), low=scalar()):
            return op.Clip(x, min=low)

        assert count(clipped, "y = Clip(x, c)", constants="float c = {1}") == 1
        assert count(clipped, "y = Clip(x, c, c)", constants="float c = {1}") == 0
        assert count(clipped, "y = Clip(x, , c)", constants="float c = {1}") == 0

    def test_attributes_of_unknown_operators_must_all_be_written(self):
        bent = "y = com.microsoft.Bent<alpha=1.702>(x)"
        unknown = op.ns("com.microsoft").Bent
        assert count(lambda x=tensor(): unknown(x, alpha=1.702), bent) == 1
        assert count(lambda x=tensor(): unknown(x, alpha=1.0), bent) == 0
        assert count(lambda x=tensor(): unknown(x), bent) == 0
        assert count(lambda x=tensor(): unknown(x, alpha=attr()), bent) == 1
        assert count(lambda x=tensor(): unknown(x, attributes=...), bent) == 1


class TestDimensions:
    def test_names_are_unified_across_captures(self):
        def product(a=tensor("B S D"), b=tensor("D")):
            return a * b

        assert count(product, "y = Mul(x, w)") == 1
        assert count(product, "y = Mul(x, w)", inputs="float[2,3,8] x, float[1] w") == 0

    def test_a_name_or_one(self):
        def product(a=tensor("B S D"), b=tensor("B|1 S|1 D")):
            return op.Sub(a, b)

        for shape, agrees in (("2,3,8", 1), ("1,3,8", 1), ("1,1,8", 1), ("3,3,8", 0), ("1,1,1", 0)):
            assert count(product, "y = Sub(x, w)", inputs=f"float[2,3,8] x, float[{shape}] w") == agrees

    def test_one_does_not_decide_what_a_name_stands_for(self):
        def product(b=tensor("B|1"), a=tensor("B"), c=tensor("B")):
            return op.Sub(op.Sub(b, a), c)

        inputs = "float[1] b, float[4] a, float[4] c"
        assert count(product, "s = Sub(b, a) y = Sub(s, c)", inputs=inputs, outputs="float[4] y") == 1

    def test_sizes_disagree_where_they_are_known_to_differ(self):
        def product(a=tensor("B S"), b=tensor("B S")):
            return op.Sub(a, b)

        assert count(product, "y = Sub(x, w)", inputs="float[N,M] x, float[N,M] w") == 1
        assert count(product, "y = Sub(x, w)", inputs="float[N,M] x, float[N,K] w") == 1
        assert count(product, "y = Sub(x, w)", inputs="float[2,M] x, float[3,M] w") == 0
        assert count(product, "y = Sub(x, w)", inputs="float[N,M] x, float[N,1] w") == 0

    def test_an_unknown_shape_agrees_with_everything(self):
        def product(a=tensor("B S"), b=tensor("B S 3")):
            return op.Sub(a, op.ns("com.microsoft").Secret(b))

        body = "u = com.microsoft.Secret(x) v = com.microsoft.Secret(u) y = Sub(w, v)"
        [found] = matches(pattern(product), model_of(body, inputs="float[5,4] x, float[5,4] w"))
        assert (found.B, found.S, found.b.shape) == (5, 4, None)

    def test_ranks_literal_sizes_and_leading_dimensions(self):
        for dims, agrees in (("_ _ _", 1), ("_ _", 0), ("... D", 1), ("... A B C D", 0), ("_ 3 8", 1), ("_ 3 7", 0)):
            assert count(lambda x=tensor(dims): op.Relu(x), "y = Relu(x)") == agrees

    def test_dimensions_are_words_of_the_match(self):
        [found] = matches(pattern(lambda x=tensor("B S D"): op.Relu(x)), model_of("y = Relu(x)"))
        assert (found.B, found.S, found.D) == (2, 3, 8)
