"""Reading and writing models: lazily, atomically, trusting nothing that a model file says.

A model is read without its weights: tensors in external data files are checked (inside the model's folder, no link,
present, long enough) and memory-mapped when somebody asks for them.

A model is written beside its destination under a temporary name and renamed when it is complete. Weights go to
`NAME.onnx.data` when they exceed `INLINE_LIMIT` in sum or when the input kept any of them outside; they are streamed
one tensor at a time, so memory stays bounded by the largest tensor that has to be computed.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from onnxfuse.derived import ComputedTensor
from onnxfuse.errors import UsageError

INLINE_LIMIT = 1 << 28  # bytes of weights kept inside the .onnx file; a runtime copies those, and maps the others
SMALLEST_EXTERNAL = 1024  # bytes; smaller tensors stay inside, where shape inference can read them
PAGE_ALIGNED_FROM = 1 << 20  # bytes; larger tensors start at a multiple of 64 KiB, which every system can map
WEIGHTS = ("copy", "reference")

Progress = Callable[[int, int], None]  # bytes done, bytes in all


def load(source: str | os.PathLike | onnx.ModelProto | ir.Model) -> ir.Model:
    """Return `source` as an onnx_ir model whose external weights stay on disk.

    Parameters
    ----------
    source : path, onnx.ModelProto or onnx_ir.Model
        An onnx_ir model is returned as it is, after it is checked. Of a ModelProto the result shares the content of
        weights, but nothing that can be changed.

    Raises
    ------
    UsageError
        The file is missing, a folder, not an ONNX model or cut short; its external data is missing, too short, or
        lies outside its folder or behind a link; a node reads what the model does not have; weights are sparse.
    """
    if isinstance(source, ir.Model):
        _check_external(source)
        _check_reads(source)
        return source
    if isinstance(source, onnx.ModelProto):
        model = _deserialize(source, "the ModelProto")
        _own_tensors(model)
        for tensor in _external_tensors(model):
            raise UsageError(
                f"the ModelProto keeps tensor {tensor.name!r} in the external file {str(tensor.location)!r}, and a "
                "ModelProto does not say in which folder: pass the path of the .onnx file instead"
            )
        return model
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"expected a path, an onnx.ModelProto or an onnx_ir.Model, not {type(source).__name__}")
    path = Path(source)
    model = _deserialize(_read_proto(path), f"{path}")
    for tensor in _external_tensors(model):
        tensor.base_dir = path.parent.resolve()
    _check_external(model)
    _map_external_attributes(model)
    return model


def _read_proto(path: Path) -> onnx.ModelProto:
    if path.is_dir():
        raise UsageError(f"{path} is a folder: give the path of an .onnx file")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        what = "cut short or damaged" if data[:1] == b"\x08" else "not an ONNX model"
        raise UsageError(f"{path} is {what}: its {len(data)} bytes are not a protobuf message") from None
    if not proto.HasField("graph") or not proto.opset_import:
        lacks = "a graph" if not proto.HasField("graph") else "its operator set versions"
        raise UsageError(f"{path} is not an ONNX model, or cut short: it lacks {lacks}")
    return proto


def _deserialize(proto: onnx.ModelProto, what: str) -> ir.Model:
    for sparse in proto.graph.sparse_initializer:  # onnx_ir leaves them out
        raise UsageError(f"{what} keeps initializer {sparse.values.name!r} as a sparse tensor: store it as a dense one")
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # onnx_ir raises many types for damaged content
        raise UsageError(f"{what} is not a valid ONNX model: {_innermost(error)}") from error
    _check_reads(model)
    _name_domain(model)
    return model


def copied(model: ir.Model) -> ir.Model:
    """A copy that shares the content of weights with `model`, but nothing that can be changed."""
    made = model.clone()
    _own_tensors(made)
    _name_domain(made)
    return made


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _graphs(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    yield from model.graphs()
    for function in model.functions.values():
        yield function
        yield from function.subgraphs()


def _check_reads(model: ir.Model) -> None:
    for graph in _graphs(model):
        for value in itertools.chain(graph.outputs, *(node.inputs for node in graph)):
            if value is None or value.producer() is not None or value.is_graph_input() or value.is_initializer():
                continue
            reader = next((f"{use.node.op_type} node {use.node.name!r}" for use in value.uses()), "an output")
            raise UsageError(
                f"the model is broken: {reader} takes {value.name!r}, which is no input, initializer or node's output"
            )


def _name_domain(model: ir.Model) -> None:
    """Write the domain of ONNX's own operators as "" in the opset imports too: its other name is "ai.onnx"."""
    for owner in (model.graph, *model.functions.values()):
        version = owner.opset_imports.pop("ai.onnx", None)
        if version is not None and owner.opset_imports.setdefault("", version) != version:
            raise UsageError(f"the model imports opset {owner.opset_imports['']} of ONNX, and {version} as 'ai.onnx'")


def _own_tensors(model: ir.Model) -> None:
    """Give `model` tensors of its own: renaming a value renames its tensor, and so does writing a model."""
    for graph in _graphs(model):
        for value in graph.initializers.values() if isinstance(graph, ir.Graph) else ():
            if value.const_value is not None:
                value.const_value = _sharing_content(value.const_value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.is_ref() or attribute.type != ir.AttributeType.TENSOR:
                    continue
                node.attributes[name] = ir.AttrTensor(name, _sharing_content(attribute.value))
                if node.op_type == "Constant" and node.outputs[0].const_value is attribute.value:
                    node.outputs[0].const_value = node.attributes[name].value


def _sharing_content(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A tensor with a name of its own, and the content of `tensor`."""
    if isinstance(tensor, ir.TensorProtoTensor):  # writes its name into the message
        return ir.LazyTensor(lambda: tensor, tensor.dtype, tensor.shape, name=tensor.name, doc_string=tensor.doc_string)
    if isinstance(tensor, ir.ExternalTensor):  # with a mapping of its own too, which it may end
        place = tensor.location, tensor.offset, tensor.length, tensor.dtype
        return ir.ExternalTensor(*place, shape=tensor.shape, name=tensor.name, base_dir=tensor.base_dir)
    return copy.copy(tensor)


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every tensor kept outside: initializers and attributes, in subgraphs and functions too."""
    for graph in _graphs(model):
        held = [value.const_value for value in graph.initializers.values()] if isinstance(graph, ir.Graph) else []
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    held.append(attribute.value)
        yield from (tensor for tensor in held if isinstance(tensor, ir.ExternalTensor))


def _map_external_attributes(model: ir.Model) -> None:
    """Turn external tensors of attributes (old exporters keep Constant nodes outside) into memory-mapped ones."""
    for graph in _graphs(model):
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.is_ref() or attribute.type != ir.AttributeType.TENSOR:
                    continue
                tensor = attribute.value
                if isinstance(tensor, ir.ExternalTensor):
                    mapped = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
                    node.attributes[name] = ir.AttrTensor(name, mapped)
                    if node.op_type == "Constant" and node.outputs[0].const_value is tensor:
                        node.outputs[0].const_value = mapped


def _check_external(model: ir.Model) -> None:
    sizes: dict[str, int] = {}
    for tensor in _external_tensors(model):
        location = os.fspath(tensor.location)
        if location not in sizes:
            sizes[location] = _checked_file_size(tensor)
        offset, length = tensor.offset or 0, tensor.length
        if length is not None and length != tensor.nbytes:
            raise UsageError(
                f"tensor {tensor.name!r} of {tensor.dtype.name} {list(tensor.shape)} needs {tensor.nbytes} bytes, but "
                f"the model gives it {length} bytes of {tensor.path}"
            )
        if offset + tensor.nbytes > sizes[location]:
            raise UsageError(
                f"external data file {tensor.path} is cut short: tensor {tensor.name!r} needs bytes {offset} to "
                f"{offset + tensor.nbytes}, the file has {sizes[location]}"
            )


def _checked_file_size(tensor: ir.ExternalTensor) -> int:
    location, path = os.fspath(tensor.location), Path(tensor.path)
    where = f"external data of tensor {tensor.name!r}: {location!r}"
    if not location or Path(location).is_absolute() or ".." in Path(location.replace("\\", "/")).parts:
        raise UsageError(f"{where} points outside the model's folder, which is refused: move the file beside the model")
    parts = [path, *path.parents][: len(Path(location).parts)]
    if any(part.is_symlink() for part in parts):
        raise UsageError(f"{where} is a symbolic link, which is refused: copy the file beside the model (cp -L)")
    try:
        status = path.stat()
    except FileNotFoundError:
        raise UsageError(f"external data file {path} is missing (tensor {tensor.name!r} needs it)") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{where} cannot be opened: {error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{where} is not a regular file")
    if status.st_nlink > 1:
        raise UsageError(f"{where} has {status.st_nlink} hard links, which is refused: copy the file beside the model")
    return status.st_size


def save(
    model: ir.Model,
    path: str | os.PathLike,
    *,
    weights: str = "copy",
    protect: Iterable[str | os.PathLike] = (),
    inline_limit: int = INLINE_LIMIT,
    progress: Progress | None = None,
) -> None:
    """Write `model` to `path`, complete or not at all; the same model gives the same bytes.

    Parameters
    ----------
    model : onnx_ir.Model
        Left as it was, its lazy tensors unevaluated.
    path : path
        The .onnx file; its folder must exist. Weights that go outside go to `path` + ".data".
    weights : "copy" | "reference"
        "reference" leaves tensors that are already outside in the file where they are, which must be in the folder of
        `path` or below; only new ones are written.
    protect : paths
        Files that must not be overwritten: the model that was read.
    inline_limit : int
        Bytes of weights up to which a model whose weights were inside stays one file.
    progress : callable(done, total), optional
        Called with bytes of weights after each tensor.

    Raises
    ------
    UsageError
        The folder does not exist, or writing would overwrite the input or a data file that is still needed.
    """
    path = Path(path)
    data_path = path.with_name(path.name + ".data")
    check_output(path, model, weights=weights, protect=protect)
    held = [value for graph in model.graphs() for value in graph.initializers.values() if value.const_value is not None]
    tensors = [value.const_value for value in held]
    outside = any(_is_from_file(tensor) for tensor in tensors)
    outside = outside or sum(tensor.nbytes for tensor in tensors) > inline_limit
    try:
        with _temporary(path) as model_file, contextlib.ExitStack() as stack:
            moved = [value for value in held if outside and _goes_outside(value.const_value, weights)]
            if moved:
                data_file = stack.enter_context(_temporary(data_path))
                _stream(moved, data_file, data_path, progress)
            for value in held:  # small tensors of an input that kept them outside come in
                tensor = value.const_value
                if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes < SMALLEST_EXTERNAL and weights == "copy":
                    value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
            model_file.write(_serialize(model))
            _flush(model_file)
            if moved:
                _flush(data_file)
                path.unlink(missing_ok=True)  # never an old graph over new weights, even for a moment
                Path(data_file.name).replace(data_path)
            Path(model_file.name).replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        for value, tensor in zip(held, tensors, strict=True):
            value.const_value = tensor


def check_output(
    path: str | os.PathLike, model: ir.Model, *, weights: str = "copy", protect: Iterable[str | os.PathLike] = ()
) -> None:
    """Raise UsageError unless `model` may be saved at `path`; for callers with long work before the saving."""
    path = Path(path)
    if weights not in WEIGHTS:
        raise UsageError(f"weights={weights!r}: expected one of {', '.join(WEIGHTS)}")
    check_place(path)
    for kept in protect:
        if path.exists() and Path(kept).exists() and path.samefile(kept):
            raise UsageError(f"{path} is the input model: choose another output path")
    data_path = path.with_name(path.name + ".data")
    for tensor in _external_tensors(model):
        source = Path(tensor.path)
        for written in (path, data_path):
            if written.exists() and source.exists() and written.samefile(source):
                raise UsageError(f"{written} holds weights of the input model: choose another output path")
        home, folder = Path(tensor.base_dir).resolve(), path.parent.resolve()
        if weights == "reference" and home != folder:
            raise UsageError(
                f"weights='reference' needs the output in the folder of the weights, {home}, not in {folder}: "
                "choose an output path there, or copy the weights"
            )


def check_place(path: Path) -> None:
    """Raise UsageError unless a file can be written at `path`."""
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder")
    if not os.access(path if _is_device(path) else path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: no permission to write in {path.parent}")


def save_text(text: str, path: str | os.PathLike) -> None:
    """Write `text` to `path`, complete or not at all; to a pipe or a terminal as it comes."""
    path = Path(path)
    try:
        if _is_device(path):
            path.write_text(text, encoding="utf-8")
            return
        with _temporary(path) as file:
            file.write(text.encode())
            _flush(file)
            Path(file.name).replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


def outline(model: ir.Model, limit: int) -> tuple[onnx.ModelProto, list[ir.Value]]:
    """`model` as a message without the content of its large weights, and the initializers that have those.

    Weights of more than `limit` bytes, and those in external files, refer to a file that does not exist.
    """
    left_out = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and (value.const_value.nbytes > limit or isinstance(value.const_value, ir.ExternalTensor))
    ]
    tensors = [value.const_value for value in left_out]
    try:
        for value, tensor in zip(left_out, tensors, strict=True):
            value.const_value = ir.ExternalTensor(
                "left-out", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape), name=value.name
            )
        return ir.to_proto(model), left_out
    finally:
        for value, tensor in zip(left_out, tensors, strict=True):
            value.const_value = tensor


def _is_from_file(tensor: ir.TensorProtocol) -> bool:
    return isinstance(tensor, ir.ExternalTensor) or (isinstance(tensor, ComputedTensor) and tensor.is_from_file)


def _goes_outside(tensor: ir.TensorProtocol, weights: str) -> bool:
    if tensor.dtype == ir.DataType.STRING or tensor.nbytes < SMALLEST_EXTERNAL:
        return False
    return not (weights == "reference" and isinstance(tensor, ir.ExternalTensor))


def _stream(values: list[ir.Value], file: BinaryIO, data_path: Path, progress: Progress | None) -> None:
    """Write the tensors of `values` one after the other and make each value refer to its place in `data_path`."""
    total, done = sum(value.const_value.nbytes for value in values), 0
    written: dict[int, ir.ExternalTensor] = {}  # a tensor shared by two initializers is written once
    for value in values:
        tensor = value.const_value
        if id(tensor) not in written:
            alignment = 1 << 16 if tensor.nbytes >= PAGE_ALIGNED_FROM else 64
            file.write(b"\0" * (-file.tell() % alignment))
            offset = file.tell()
            tensor.tofile(file)
            if file.tell() - offset != tensor.nbytes:
                raise ValueError(f"tensor {tensor.name!r} wrote {file.tell() - offset} bytes, not {tensor.nbytes}")
            written[id(tensor)] = ir.ExternalTensor(
                data_path.name,
                offset,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape),
                name=value.name,
                base_dir=data_path.parent,
            )
        value.const_value = written[id(tensor)]
        done += tensor.nbytes
        if progress is not None:
            progress(done, total)


def _serialize(model: ir.Model) -> bytes:
    try:
        return ir.to_proto(model).SerializeToString(deterministic=True)
    except (ValueError, DecodeError) as error:
        raise UsageError(f"the model does not fit into one protobuf file of 2 GiB: {error}") from error


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[BinaryIO]:
    """A new file in the folder of `path`, gone afterwards unless it was renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:
            yield file
    finally:
        temporary.unlink(missing_ok=True)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
