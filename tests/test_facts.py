"""Facts are derived once for all nodes that must give the same, and never shared by nodes that need not."""

import itertools

from graphs import model_of

from onnxfuse import dims
from onnxfuse.facts import Facts
from onnxfuse.shapes.movement import slice_length


def facts_of(body: str, inputs: str, outputs: str, constants: str = ""):
    model = model_of(body, inputs, outputs, constants)
    facts = Facts(model)
    return facts, {value.name: value for node in model.graph for value in node.outputs}


def test_the_same_operator_on_equal_facts_gives_one_fact():
    facts, values = facts_of(
        "a = Relu(x) b = Relu(y) s = Transpose<perm=[1,0]>(a) t = Transpose<perm=[1,0]>(b)",
        "float[B,8] x, float[B,8] y",
        "float[8,B] s, float[8,B] t",
    )
    assert facts.fact(values["s"]) is facts.fact(values["t"])


def test_attributes_tell_facts_apart():
    facts, values = facts_of(
        "a = Transpose<perm=[1,0,2]>(x) b = Transpose<perm=[0,2,1]>(x)",
        "float[2,3,4] x",
        "float[M,N,K] a, float[O,P,Q] b",
    )
    assert facts.shape(values["a"]) == (3, 2, 4)
    assert facts.shape(values["b"]) == (2, 4, 3)


def test_sizes_known_at_run_time_only_are_not_taken_to_be_equal():
    facts, values = facts_of(
        "a = Relu(x) b = Relu(x) s = Reshape(a, p) t = Reshape(b, q)",
        "float[N] x, int64[2] p, int64[2] q",
        "float[I,J] s, float[K,L] t",
    )
    s, t = facts.shape(values["s"]), facts.shape(values["t"])
    assert len(s) == len(t) == 2 and not set(s) & set(t)


def test_truth_values_and_integers_are_different_contents():
    facts, values = facts_of(
        "a = Cast<to=7>(yes) b = Identity(one) c = Identity(yes)",
        "float x",
        "int64 a, int64 b, bool c",
        "bool yes = {1}, int64 one = {1}",
    )
    assert facts.content(values["a"]) == facts.content(values["b"]) == [1]
    assert facts.fact(values["c"]) is not facts.fact(values["b"])
    assert facts.content(values["c"]) == [True]


def rows_of(table: int, start: str, end: str) -> tuple:
    """The shape of x [B, S, 4] plus rows `start` to `end`, of P and S, of a table."""
    facts, values = facts_of(
        f"""
        p = Shape<start=1, end=2>(past) s = Shape<start=1, end=2>(x) sum = Add(p, s) all = Add(sum, p)
        rows = Slice(table, {start}, {end}, zero) y = Add(x, rows)
        """,
        "float[B,S,4] x, float[B,P,4] past",
        "float[I,J,K] y",
        f"int64[1] zero = {{0}}, float[{table},4] table = {{{', '.join(['0'] * table * 4)}}}",
    )
    return facts.shape(values["y"])


def test_rows_of_a_table_behind_the_past_are_as_many_as_the_tokens_that_they_meet():
    """Where the table ends earlier, the Add fails, or nothing is computed."""
    x = rows_of(9, "p", "sum")
    assert [str(size) for size in x] == ["B", "S", "4"]
    assert rows_of(9, "zero", "s") == x


def test_other_rows_of_a_table_are_not_taken_to_be_as_many():
    tokens = rows_of(9, "p", "sum")[1]
    assert rows_of(1, "p", "sum")[1] != tokens  # one row at most: it may broadcast
    assert rows_of(9, "p", "all")[1] != tokens
    assert rows_of(9, "s", "sum")[1] != tokens
    assert rows_of(1, "zero", "s")[1] != tokens


def test_a_size_that_a_reshape_must_give_is_the_one_that_is_left():
    """A Reshape to as many rows as a table has of them fails unless they are all there."""
    facts, values = facts_of(
        """
        p = Shape<start=1, end=2>(past) s = Shape<start=1, end=2>(x) sum = Add(p, s)
        rows = Slice(table, p, sum, zero) count = Shape<start=0, end=1>(rows)
        to = Concat<axis=0>(zero, count, wide) y = Reshape(x, to)
        """,
        "float[B,S,2,4] x, float[B,P,4] past",
        "float[I,J,K] y",
        f"int64[1] zero = {{0}}, int64[1] wide = {{8}}, float[9,4] table = {{{', '.join(['0'] * 36)}}}",
    )
    assert [str(size) for size in facts.shape(values["y"])] == ["B", "S", "8"]


def test_the_length_of_a_slice_is_what_python_makes_it():
    """Bounds of a run may count from the end, and any may lie outside."""
    numbers = (-(2**63), -7, -3, -1, 0, 1, 2, 5, 9, 2**63 - 1)
    run = [
        *((n, n) for n in numbers),
        *((dims.runtime_value("n"), n) for n in (-7, -1, 0, 2, 9)),
        (dims.symbol("P"), 2),
    ]
    for (size, count), (start, first), (end, last), step in itertools.product(
        ((6, 6), (dims.symbol("S"), 6), (dims.symbol("S"), 0)), run, run, (1, 2)
    ):
        if isinstance(start, dims.Dim) and start == end:
            continue  # one name, one number
        both = {str(dim): n for dim, n in ((size, count), (start, first), (end, last)) if isinstance(dim, dims.Dim)}
        length = slice_length(size, start, end, step)
        assert dims.evaluate(length, both) == len(range(count)[first:last:step]), (size, start, end, step)
