"""Sizes computed from shapes are shared, but only while the node that computes them is in the graph."""

from graphs import check_sound, model_of, operators

from onnxfuse.normalise import normalise


def test_a_size_whose_node_was_removed_meanwhile_is_computed_again():
    """The Reshape does nothing and goes, and with it the Gather that made its shape."""
    body = """
        h = Relu(x)
        s = Shape(h)
        d = Gather(s, one)
        u = Unsqueeze(d, axes)
        b = Gather(s, zero)
        ub = Unsqueeze(b, axes)
        c = Concat<axis=0>(ub, u, eight)
        y = Reshape(h, c)
        t = Shape(y)
        e = Gather(t, one)
        n = Add(e, past)
    """
    constants = "int64 one = {1}, int64 zero = {0}, int64[1] eight = {8}, int64[1] axes = {0}"
    model = model_of(body, "float[B,S,8] x, int64 past", "float[B,S,8] y, int64 n", constants)
    normalise(model)
    assert operators(model) == ["Relu", "Shape", "Gather", "Add"]
    check_sound(model)
