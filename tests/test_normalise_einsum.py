"""Einsum of two tensors becomes the product of matrices that it is; every other Einsum stays."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from graphs import check_sound, model_of, operators

from onnxfuse.normalise import normalise

SIZES = {"b": 2, "s": 3, "t": 5, "k": 3, "g": 2, "d": 4, "h": 6, "n": 2}
OPEN = "bst"  # sizes that the model leaves open


def normalised(equation: str, sizes=SIZES) -> ir.Model:
    """The model of one Einsum after normalising, which must not change what it computes."""
    operands, _, result = equation.replace(" ", "").partition("->")
    terms = operands.split(",")

    def tensor(name: str, labels: str) -> str:
        return f"float[{','.join(c.upper() if c in OPEN else str(sizes[c]) for c in labels)}] {name}"

    names = "abc"[: len(terms)]
    model = model_of(
        f'y = Einsum<equation="{equation}">({", ".join(names)})',
        ", ".join(tensor(name, labels) for name, labels in zip(names, terms, strict=True)),
        tensor("y", result),
    )
    normalise(model)
    check_sound(model)
    rng = np.random.default_rng(len(equation))
    feeds = {
        name: rng.standard_normal([sizes[c] for c in labels]).astype(np.float32)
        for name, labels in zip(names, terms, strict=True)
    }
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    (got,) = session.run(None, feeds)
    want = np.einsum(equation.replace(" ", ""), *(feeds[name].astype(np.float64) for name in names))
    # at most 24 products are summed, each rounded once and each sum once, none of them above 24 * 3^2 by much
    np.testing.assert_allclose(got, want, rtol=0, atol=24 * 2**-24 * 216)
    return model


@pytest.mark.parametrize(
    "equation",
    [
        "bsd,dh->bsh",  # a linear layer
        "bsh,hkd->bskd",  # a projection to heads
        "bskd,kdh->bsh",  # and from them
        "dh,bsd->bsh",  # the weight first
        "bskd,btkd->bkst",  # scores
        "bkst,btkd->bskd",  # context
        "bskgd,btkd->bkgst",  # scores of grouped queries
        "bkgst,btkd->bskgd",  # context of grouped queries
        "b s d , b t d -> b s t",
        "sd,td->st",
        "sd,td->ts",
        "bsd,btd->tbs",
        "bkgsd,bktd->bkgst",
        "bksdh,btdh->tbks",  # two labels summed, several rows
    ],
)
def test_products_are_written_as_matmul(equation):
    found = operators(normalised(equation))
    assert "MatMul" in found
    assert "Einsum" not in found


@pytest.mark.parametrize(
    "equation",
    [
        "sd,sd->s",  # no matrices: neither has a label of its own
        "sd,td->s",  # t is summed over one operand alone
        "sd,td->std",  # nothing is summed
        "bsd->bds",
        "sd,dh,hn->sn",
    ],
)
def test_any_other_einsum_stays(equation):
    assert operators(normalised(equation)).count("Einsum") == 1


def test_an_axis_of_one_that_broadcasts_stays_an_einsum():
    """MatMul would not repeat the one feature of `b`."""
    model = model_of('y = Einsum<equation="sd,td->st">(a, b)', "float[S,4] a, float[T,1] b", "float[S,T] y")
    normalise(model)
    assert operators(model) == ["Einsum"]


@pytest.mark.parametrize("equation", ["...d,dh->...h", "sd,dh", "ii,ij->ij"])
def test_equations_of_another_form_stay(equation):
    model = model_of(f'y = Einsum<equation="{equation}">(a, b)', "float[4,4] a, float[4,4] b", "float[4,4] y")
    normalise(model)
    assert operators(model) == ["Einsum"]
