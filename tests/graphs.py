"""Small graphs as text, and what the engine's tests ask of them."""

import onnx_ir as ir

from onnxfuse.dsl import fusion, op, tensor
from onnxfuse.facts import Facts
from onnxfuse.rewriter import rewrite


def pattern(function):
    """A fusion that is only looked for."""
    return fusion(stage="cleanup")(function)


def fusing(function, rewriting, stage="elementwise"):
    """A fusion of a pattern function and a rewrite function."""
    made = fusion(stage=stage)(function)
    made.rewrite(rewriting)
    return made


def model_of(body, inputs="float[2,3,8] x, float[8] w", outputs="float[2,3,8] y", constants="", opset=18):
    """A model in ONNX's text form; a node that makes `y` is called `make_y`."""
    header = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1, "onnxfuse" : 1]>'
    model = ir.from_onnx_text(f"{header} g ({inputs}) => ({outputs}) <{constants}> {{ {body} }}")
    for node in model.graph.all_nodes():
        node.name = f"make_{node.outputs[0].name}"
    return model


def named(model, name):
    """The value of that name that a node makes."""
    return next(value for node in model.graph.all_nodes() for value in node.outputs if value.name == name)


def matches(made, model, value="y"):
    """Every match of a fusion at the node that makes `value`."""
    return list(made.matches(named(model, value), Facts(model)))


def count(function, body, **options):
    """In how many ways a pattern matches what makes `y`."""
    return len(matches(pattern(function), model_of(body, **options)))


def run(model, *fusions, **options):
    """Rewrite `model` in place; the events."""
    return rewrite(model, Facts(model), fusions, **options)


def operators(model):
    """The operators of the main graph in order."""
    return [node.op_type for node in model.graph]


def check_sound(model):
    """Every value is made before it is read, names are unique, and every value knows its users."""
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
    given = [*model.graph.inputs, *model.graph.initializers.values()]
    for value in (*given, *(value for node in model.graph.all_nodes() for value in node.outputs)):
        assert all(use.node.graph is not None and use.node.inputs[use.idx] is value for use in value.uses())


def neg_exp(name="NegExp", stage="elementwise"):
    """Exp(-x) as one operator."""
    return fusing(lambda x=tensor(): op.Exp(-x), lambda new, m: getattr(new, name)(m.x), stage)


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
