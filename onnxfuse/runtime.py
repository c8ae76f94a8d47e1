"""Running fused models: ONNX Runtime sessions with the operators' library loaded."""

from __future__ import annotations

import collections
import ctypes
import functools
import importlib.util
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

import onnxfuse.custom_ops
from onnxfuse.errors import UsageError

if TYPE_CHECKING:
    import onnxruntime

_LIBRARY = "libonnxfuse_ops"
_OPS_KEY = "onnxfuse.ops"
_PROVIDERS_KEY = "onnxfuse.providers"
_RECORD_PLACES_KEY = "session.record_ep_graph_assignment_info"
_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"


def library_path() -> Path:
    """The shared library of the operators, for `SessionOptions.register_custom_ops_library`.

    Raises
    ------
    FileNotFoundError
        The package was used without having been built.
    """
    # An editable install keeps the library elsewhere than the sources, and may rebuild it when it is looked up.
    spec = importlib.util.find_spec(f"onnxfuse.custom_ops.{_LIBRARY}")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin)
    for folder in onnxfuse.custom_ops.__path__:
        for library in Path(folder).glob(f"{_LIBRARY}.*"):
            return library
    raise FileNotFoundError(
        f"{_LIBRARY} is not beside {list(onnxfuse.custom_ops.__path__)}; build it with: pip install ."
    )


@functools.cache
def _kernels() -> tuple[tuple[str, str, str], ...]:
    """The execution provider, the operator and the language of each of the library's kernels."""
    function = ctypes.CDLL(str(library_path())).onnxfuse_kernels
    function.restype = ctypes.c_char_p
    return tuple(tuple(line.split()) for line in function().decode().splitlines())


@functools.cache
def kernels() -> dict[str, frozenset[str]]:
    """The operators that the library has kernels for, by ONNX Runtime's names of the execution providers.

    Examples
    --------
    >>> "RMSNorm" in kernels()["CPUExecutionProvider"]
    True
    """
    found: dict[str, set[str]] = collections.defaultdict(set)
    for provider, operator, _ in _kernels():
        found[provider].add(operator)
    return {provider: frozenset(operators) for provider, operators in found.items()}


def triton_kernels() -> frozenset[str]:
    """The operators for which the library has a kernel written in Triton, built with ONNXFUSE_TRITON=ON.

    Sessions take it, unless their config entry "onnxfuse.triton" is "0".
    """
    return frozenset(operator for _, operator, language in _kernels() if language == "Triton")


def session_options(
    options: onnxruntime.SessionOptions | None = None,
    *,
    providers: str | Sequence[str | tuple[str, dict[str, Any]]] | None = None,
    ops: str | Sequence[str] | None = None,
) -> onnxruntime.SessionOptions:
    """ONNX Runtime session options with the operators registered.

    Parameters
    ----------
    options
        Options to complete; new ones by default. Those that have the operators already stay as they are.
    providers
        The execution providers of the session, first choice first, or one; the CPU by default. An operator without a
        kernel for the first one is left to its function body, which runs there.
    ops
        The operators whose kernels to use, e.g. ["RMSNorm"]; the others run as their function bodies. By default all
        that suit `providers`.

    Raises
    ------
    ImportError
        ONNX Runtime is not installed.
    UsageError
        `options` have the operators already, but for other providers or only some of them.
    """
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions() if options is None else options
    providers, ops = _each(providers), _each(ops)
    names = [_CPU] if not providers else [_name(provider) for provider in providers]
    chosen = names if ops is not None else names[:1]
    # Kernels for a provider that this ONNX Runtime lacks would leave it with nodes that nothing can run.
    chosen = [name for name in chosen if name in kernels() and name in onnxruntime.get_available_providers()]
    if ops is None:
        ops = sorted(frozenset().union(*(kernels()[name] for name in chosen)))
    if _CPU in names and _CPU not in chosen:
        chosen.append(_CPU)  # should the first provider fail to start, the session runs there
    wanted = (",".join(ops), ",".join(chosen)) if ops and chosen else ("", "")
    present = _entry(options, _OPS_KEY), _entry(options, _PROVIDERS_KEY)
    if present not in (wanted, ("", "")):
        raise UsageError(
            f"the session options have kernels of {present[0]} for {present[1]} already, and {wanted[0] or 'none'} for "
            f"{wanted[1] or 'any provider'} are asked for: pass the same to session_options(), or other options"
        )
    if present != wanted:
        options.add_session_config_entry(_OPS_KEY, wanted[0])
        options.add_session_config_entry(_PROVIDERS_KEY, wanted[1])
        options.register_custom_ops_library(str(library_path()))
    return options


def _entry(options: onnxruntime.SessionOptions, key: str) -> str:
    try:
        return options.get_session_config_entry(key)
    except RuntimeError:  # it has none
        return ""


def session(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model,
    providers: str | Sequence[str | tuple[str, dict[str, Any]]] | None = None,
    *,
    options: onnxruntime.SessionOptions | None = None,
    ops: str | Sequence[str] | None = None,
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session of a fused model.

    Warns, where CUDA is the first of `providers`, of fused nodes that run elsewhere or as their function bodies.

    Parameters
    ----------
    model
        A path, or a model in memory. One over 2 GB has to be a path.
    providers
        The execution providers, first choice first, or one; the CPU by default.
    options, ops
        As in `session_options`.

    Examples
    --------
    >>> session = onnxfuse.session("fused.onnx")  # doctest: +SKIP
    >>> session.run(None, {"input_ids": ids})  # doctest: +SKIP
    """
    providers = [_CPU] if providers is None else _each(providers)
    options = session_options(options, providers=providers, ops=ops)
    on_cuda = bool(providers) and _name(providers[0]) == _CUDA
    if on_cuda:
        options.add_session_config_entry(_RECORD_PLACES_KEY, "1")
    if isinstance(model, ir.Model):
        model = ir.to_proto(model)
    if isinstance(model, onnx.ModelProto):
        model = model.SerializeToString()
    source = model if isinstance(model, bytes) else os.fspath(model)
    session = _onnxruntime().InferenceSession(source, options, providers=list(providers))
    if on_cuda:
        for obstacle in _obstacles(session, source, ops):
            warnings.warn(obstacle, stacklevel=2)
    return session


def _obstacles(session: onnxruntime.InferenceSession, source: bytes | str, ops: Sequence[str] | None) -> Iterable[str]:
    """Why fused nodes of a session that prefers CUDA do not run as CUDA kernels, a sentence each."""
    if _CUDA not in session.get_providers():
        available = _CUDA in _onnxruntime().get_available_providers()
        yield "the CUDA execution provider did not start, so the model runs on the CPU; " + (
            "ONNX Runtime's own message says what it lacks"
            if available
            else "this ONNX Runtime was built without it: pip install 'onnxfuse[gpu]'"
        )
        return
    proto = onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(source, load_external_data=False)
    model = ir.from_proto(proto)
    fused = collections.Counter(_operators(ir.traversal.RecursiveGraphIterator(model.graph), model))
    have = kernels().get(_CUDA, frozenset())
    if fused and not have:
        yield (
            "this build of onnxfuse has no CUDA kernels, so fused nodes run as standard operators: "
            "install it anew with nvcc on the PATH"
        )
        return
    for operator in sorted(fused.keys() - have) if ops is None else ():
        yield f"{fused[operator]} nodes {operator} run as standard operators: there is no CUDA kernel for it"
    if not hasattr(session, "get_provider_graph_assignment_info"):  # before ONNX Runtime 1.24
        return
    elsewhere = collections.Counter(
        (node.op_type, place.ep_name)
        for place in session.get_provider_graph_assignment_info()
        for node in place.get_nodes()
        if node.domain == "onnxfuse" and place.ep_name != _CUDA
    )
    for (operator, provider), count in sorted(elsewhere.items()):
        yield f"{count} nodes {operator} run on {provider}: the CUDA kernel does not take their dtypes"


def _operators(nodes: Iterable[ir.Node], model: ir.Model) -> Iterable[str]:
    """The fused operators among `nodes`; of a block, those in its body, since that is what runs."""
    for node in nodes:
        if node.domain == "onnxfuse":
            body = model.functions.get(node.op_identifier(), ())
            inside = list(_operators(body, model))
            yield from inside or [node.op_type]


def _each(names: Sequence[Any] | None) -> Sequence[Any] | None:
    """A list, also of one name that is given by itself."""
    return [names] if isinstance(names, str) else names


def _name(provider: str | tuple[str, dict[str, Any]]) -> str:
    return provider if isinstance(provider, str) else provider[0]


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "onnxfuse runs models with ONNX Runtime, which is not installed; "
            "take one of: pip install 'onnxfuse[cpu]', pip install 'onnxfuse[gpu]'"
        ) from error
    return onnxruntime
