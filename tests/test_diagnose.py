"""Near misses name the pattern's own line, what it expected and what it found."""

from graphs import ATTENTION, QKV, RMS_CONSTANTS, RMS_NORM, fusing, model_of, run

from onnxfuse.dsl import op, tensor


class TestNearMisses:
    def test_a_wrong_attribute_is_named_with_the_patterns_own_line(self, attention):
        model = model_of(ATTENTION.replace("axis=-1", "axis=1"), inputs=QKV, outputs="float[2,5,8] y")
        [event] = run(model, attention)
        assert event.message == "Softmax.axis: expected -1, found 1"
        assert (event.fusion, event.matched, event.wanted) == ("attention", 4, 4)
        assert event.source == "return op.MatMul(op.Softmax(scores + mask | scores, axis=-1), v)"
        assert event.where.startswith("conftest.py:")
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

    def test_a_place_whose_last_operator_is_of_another_kind_is_found(self):
        gated = fusing(lambda x=tensor(), u=tensor(): x * op.Sigmoid(x) * u, lambda new, m: new.SwiGLU(m.x, m.u))
        [event] = run(model_of("s = Sigmoid(x) p = Mul(x, s) y = Add(p, w)"), gated)
        assert event.message == "operator: expected Mul, found Add"
        assert event.at == "Add 'make_y': 'y' float32[2, 3, 8]"
        assert (event.matched, event.wanted) == (2, 3)

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
