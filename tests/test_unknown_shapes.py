"""What a kernel has to know of a shape that the model does not tell is refused, in words."""

from graphs import RMS_CONSTANTS, RMS_NORM, model_of

import onnxfuse


def test_a_norm_of_an_unknown_shape_may_broadcast_against_its_weight():
    model = model_of(
        f"x = Reshape(given, sizes) {RMS_NORM}",
        "float[N] given, int64[K] sizes, float[8] w",
        "float[M,8] y",
        RMS_CONSTANTS,
    )
    result = onnxfuse.optimize(model, verify="none")
    assert result.report.fused == {}
    assert [refused.reason for refused in result.report.refused] == ["x is 'x' float32: its shape is unknown"]
