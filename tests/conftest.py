"""Sample fusions for the tests of the engine, and what pytest prints at its end."""

import pytest
import zoo_table
from spellings import table as spellings_table

from onnxfuse import api
from onnxfuse.dsl import fusion, maybe, op, scalar, tensor


@pytest.fixture(autouse=True)
def _strict(monkeypatch):
    """A fusion that breaks down is an error in the tests; people get its match refused."""
    monkeypatch.setattr(api, "STRICT", True)


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


def pytest_terminal_summary(terminalreporter):
    for title, table in (("model zoo", zoo_table), ("spellings", spellings_table)):
        lines = table.lines(terminalreporter)
        if lines:
            terminalreporter.section(title)
            for line in lines:
                terminalreporter.write_line(line)
