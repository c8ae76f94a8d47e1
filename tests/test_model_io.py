"""Loading refuses what is broken or tries to escape its folder; saving is atomic, streamed and repeatable."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from small_models import embedding_model, weights, written, written_outside

from onnxfuse import model_io
from onnxfuse.errors import UsageError


def external_location(path: Path, location: str) -> None:
    """Point every external tensor of the model at `path` to `location`."""
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(proto.SerializeToString())


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def test_path_proto_and_ir_model_give_the_same_graph(tmp_path):
    proto = embedding_model()
    sources = [written(proto, tmp_path), str(written(proto, tmp_path)), proto, ir.from_proto(proto)]
    nodes = [[node.name for node in model_io.load(source).graph] for source in sources]
    assert nodes == [[node.name for node in proto.graph.node]] * 4


def test_external_weights_are_not_read_by_loading(tmp_path):
    path = written_outside(embedding_model(), tmp_path)
    model = model_io.load(path)
    held = [value.const_value for value in model.graph.initializers.values()]
    assert all(isinstance(tensor, ir.ExternalTensor) and tensor.raw is None for tensor in held)
    np.testing.assert_array_equal(model.graph.initializers["table"].const_value.numpy(), weights(16, 8, 1))


def test_external_tensors_of_constant_nodes_are_mapped(tmp_path):
    (tmp_path / "c.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    tensor = onnx.TensorProto(name="t", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="c.bin")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Constant", [], ["y"], value=tensor)],
        "g",
        [],
        [onnx.helper.make_tensor_value_info("y", 1, [4])],
    )
    path = written(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), tmp_path)
    model = model_io.load(path)
    (tmp_path / "elsewhere").mkdir()
    model_io.save(model, tmp_path / "elsewhere" / "out.onnx")
    saved = onnx.load(tmp_path / "elsewhere" / "out.onnx").graph.node[0].attribute[0].t
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(saved), np.arange(4, dtype=np.float32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"this is a text file\n", "not an ONNX model"),
        (b"", "not an ONNX model"),
        (b"\x08\x08", "lacks a graph"),
    ],
)
def test_a_file_that_is_no_model_is_refused(tmp_path, content, message):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        model_io.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9, 0.999])
def test_a_truncated_model_is_refused(tmp_path, part):
    path = written(embedding_model(), tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(UsageError, match="cut short"):
        model_io.load(path)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"nothing\.onnx does not exist"):
        model_io.load(tmp_path / "nothing.onnx")
    with pytest.raises(UsageError, match="is a folder"):
        model_io.load(tmp_path)


def test_sparse_initializers_are_refused(tmp_path):
    proto = embedding_model()
    values = onnx.numpy_helper.from_array(np.array([1.0, 2.0], np.float32), "extra")
    places = onnx.numpy_helper.from_array(np.array([1, 4]))
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [2, 3]))
    for source in (proto, written(proto, tmp_path)):
        with pytest.raises(UsageError, match="keeps initializer 'extra' as a sparse tensor"):
            model_io.load(source)


def broken_models() -> dict[str, onnx.ModelProto]:
    """Models that take a value that nothing makes: by a node, inside an If, as an output, in a function."""
    text = {
        "node": "g (float[2] x) => (float[2] y) { y = Add(x, gone) }",
        "branch": "g (float[2] x, bool c) => (float[2] y) { y = If(c) <then_branch = t () => (float[2] a)"
        " { a = Add(x, gone) }, else_branch = e () => (float[2] b) { b = Neg(x) }> }",
        "output": "g (float[2] x) => (float[2] y, float[2] gone) { y = Neg(x) }",
        "function": "g (float[2] x) => (float[2] y) { y = own.F(x) }"
        ' <domain: "own", opset_import: ["" : 18]> F (x) => (y) { y = Add(x, gone) }',
    }
    start = '<ir_version: 8, opset_import: ["" : 18, "own" : 1]> '
    return {where: onnx.parser.parse_model(start + graph) for where, graph in text.items()}


@pytest.mark.parametrize("where", broken_models())
def test_what_nothing_makes_is_named(tmp_path, where):
    proto = broken_models()[where]
    reader = "an output" if where == "output" else "Add node ''"
    for source in (proto, ir.from_proto(proto), written(proto, tmp_path)):
        with pytest.raises(UsageError, match=f"{reader} takes 'gone', which is no input, initializer or node's output"):
            model_io.load(source)


def test_the_other_name_of_the_standard_domain(tmp_path):
    proto = embedding_model()
    proto.opset_import[0].domain = "ai.onnx"
    for source in (proto, written(proto, tmp_path)):
        assert model_io.load(source).opset_imports == {"": 17}
    given = ir.from_proto(proto)
    assert model_io.copied(given).opset_imports == {"": 17} and given.opset_imports == {"ai.onnx": 17}
    proto.opset_import.add(domain="", version=18)
    with pytest.raises(UsageError, match=r"imports opset 18 of ONNX, and 17 as 'ai\.onnx'"):
        model_io.load(proto)


def test_missing_external_data_is_named(tmp_path):
    path = written_outside(embedding_model(), tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(UsageError, match=r"weights\.bin is missing.*'table'"):
        model_io.load(path)


def test_external_data_cut_short_is_refused(tmp_path):
    path = written_outside(embedding_model(), tmp_path)
    os.truncate(tmp_path / "weights.bin", 100)
    with pytest.raises(UsageError, match=r"weights\.bin is cut short.*the file has 100"):
        model_io.load(path)


def test_external_data_outside_the_folder_is_refused(tmp_path):
    (tmp_path / "inner").mkdir()
    path = written_outside(embedding_model(), tmp_path / "inner")
    (tmp_path / "inner" / "weights.bin").rename(tmp_path / "weights.bin")
    for location in ("../weights.bin", str(tmp_path / "weights.bin"), "sub/../../weights.bin", "..\\weights.bin"):
        external_location(path, location)
        with pytest.raises(UsageError, match="outside the model's folder"):
            model_io.load(path)


def test_external_data_behind_a_link_is_refused(tmp_path):
    path = written_outside(embedding_model(), tmp_path)
    data = tmp_path / "weights.bin"
    data.rename(tmp_path / "real.bin")
    data.symlink_to(tmp_path / "real.bin")
    with pytest.raises(UsageError, match="symbolic link"):
        model_io.load(path)
    data.unlink()
    data.hardlink_to(tmp_path / "real.bin")
    with pytest.raises(UsageError, match="hard links"):
        model_io.load(path)


def test_external_data_below_a_linked_folder_is_refused(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "models").mkdir()
    path = written_outside(embedding_model(), tmp_path / "models")
    (tmp_path / "models" / "weights.bin").rename(tmp_path / "secret" / "weights.bin")
    (tmp_path / "models" / "data").symlink_to(tmp_path / "secret")
    external_location(path, "data/weights.bin")
    with pytest.raises(UsageError, match="symbolic link"):
        model_io.load(path)


def test_a_proto_with_external_data_is_refused(tmp_path):
    proto = onnx.load(written_outside(embedding_model(), tmp_path), load_external_data=False)
    with pytest.raises(UsageError, match=r"pass the path of the \.onnx file"):
        model_io.load(proto)


def test_saving_keeps_the_interface_and_the_weights(tmp_path):
    proto = embedding_model()
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "past + sequence"
    model_io.save(model_io.load(proto), tmp_path / "out.onnx")
    saved = onnx.load(tmp_path / "out.onnx")
    assert saved.graph.input == proto.graph.input and saved.graph.output == proto.graph.output
    assert names(tmp_path) == ["out.onnx"]
    for name, array in tensors(tmp_path / "out.onnx").items():
        np.testing.assert_array_equal(
            array, {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}[name]
        )


def test_weights_over_the_limit_go_outside_aligned(tmp_path):
    proto = embedding_model(rows=64)
    model_io.save(model_io.load(proto), tmp_path / "out.onnx", inline_limit=100)
    saved = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    outside = {
        t.name: onnx.external_data_helper.ExternalDataInfo(t) for t in saved.graph.initializer if t.external_data
    }
    assert sorted(outside) == ["head", "table"]  # 2 KiB each; smaller ones stay inside
    assert {info.location for info in outside.values()} == {"out.onnx.data"}
    assert all((info.offset or 0) % 64 == 0 for info in outside.values())
    np.testing.assert_array_equal(tensors(tmp_path / "out.onnx")["table"], weights(64, 8, 1))


def test_weights_that_were_outside_stay_outside_and_small_ones_come_in(tmp_path):
    source = written_outside(embedding_model(rows=64), tmp_path)
    (tmp_path / "other").mkdir()
    model_io.save(model_io.load(source), tmp_path / "other" / "out.onnx")
    assert names(tmp_path / "other") == ["out.onnx", "out.onnx.data"]
    for name, array in tensors(source).items():
        np.testing.assert_array_equal(tensors(tmp_path / "other" / "out.onnx")[name], array)


def test_referenced_weights_stay_in_their_file_and_new_ones_are_written(tmp_path):
    source = written_outside(embedding_model(rows=64), tmp_path)
    model = model_io.load(source)
    head = model.graph.initializers["head"]
    stored = head.const_value
    head.const_value = ir.LazyTensor(
        lambda: ir.tensor(stored.numpy() * np.float32(2)), dtype=stored.dtype, shape=stored.shape, name="head"
    )
    model_io.save(model, tmp_path / "out.onnx", weights="reference")
    saved = {
        t.name: onnx.external_data_helper.ExternalDataInfo(t).location
        for t in onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
        if t.external_data
    }
    assert saved["table"] == "weights.bin" and saved["head"] == "out.onnx.data"
    np.testing.assert_array_equal(tensors(tmp_path / "out.onnx")["head"], 2 * tensors(source)["head"])
    assert (tmp_path / "out.onnx.data").stat().st_size == 64 * 8 * 4


def test_referencing_from_another_folder_is_refused(tmp_path):
    source = written_outside(embedding_model(rows=64), tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="output in the folder of the weights"):
        model_io.save(model_io.load(source), tmp_path / "other" / "out.onnx", weights="reference")


def test_saving_leaves_the_model_as_it_was(tmp_path):
    model = model_io.load(written_outside(embedding_model(rows=64), tmp_path))
    before = [value.const_value for value in model.graph.initializers.values()]
    model_io.save(model, tmp_path / "out.onnx")
    assert all(a is b for a, b in zip(before, (v.const_value for v in model.graph.initializers.values()), strict=True))


def test_the_same_model_gives_the_same_bytes(tmp_path):
    source = written_outside(embedding_model(rows=64), tmp_path)
    files = []
    for _ in range(2):
        model_io.save(model_io.load(source), tmp_path / "out.onnx")
        files.append(((tmp_path / "out.onnx").read_bytes(), (tmp_path / "out.onnx.data").read_bytes()))
    assert files[0] == files[1]


def test_a_failure_in_the_middle_leaves_the_old_output_alone(tmp_path):
    def broken() -> ir.TensorProtocol:
        raise RuntimeError("no such weight")

    source = written_outside(embedding_model(rows=64), tmp_path)
    model = model_io.load(source)
    model_io.save(model, tmp_path / "out.onnx")
    before = contents(tmp_path)
    head = model.graph.initializers["head"]
    head.const_value = ir.LazyTensor(broken, dtype=ir.DataType.FLOAT, shape=head.const_value.shape, name="head")
    with pytest.raises(RuntimeError, match="no such weight"):
        model_io.save(model, tmp_path / "out.onnx")
    assert contents(tmp_path) == before


def test_output_in_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"the folder .*missing does not exist"):
        model_io.save(model_io.load(embedding_model()), tmp_path / "missing" / "out.onnx")
    assert names(tmp_path) == []


def test_the_input_is_never_overwritten(tmp_path):
    source = written_outside(embedding_model(rows=64), tmp_path, data="out.onnx.data")
    model = model_io.load(source)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="is the input model"):
        model_io.save(model, source, protect=[source])
    with pytest.raises(UsageError, match="holds weights of the input model"):
        model_io.save(model, tmp_path / "out.onnx")
    with pytest.raises(UsageError, match="holds weights of the input model"):
        model_io.save(model, tmp_path / "out.onnx.data")
    assert contents(tmp_path) == before


def test_progress_counts_every_byte_that_is_streamed(tmp_path):
    steps = []
    model = model_io.load(embedding_model(rows=64))
    model_io.save(
        model, tmp_path / "out.onnx", inline_limit=0, progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(2048, 4096), (4096, 4096)]
