"""Running fused models: ONNX Runtime sessions with the operators' library loaded."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

import onnxfuse.custom_ops

if TYPE_CHECKING:
    import onnxruntime

_LIBRARY = "libonnxfuse_ops"
_OPS_KEY = "onnxfuse.ops"
_CPU = "CPUExecutionProvider"


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


def session_options(
    options: onnxruntime.SessionOptions | None = None,
    *,
    providers: Sequence[str | tuple[str, dict[str, Any]]] | None = None,
    ops: Sequence[str] | None = None,
) -> onnxruntime.SessionOptions:
    """ONNX Runtime session options with the operators registered.

    Parameters
    ----------
    options
        Options to complete; new ones by default.
    providers
        The execution providers of the session, first choice first. An operator without a kernel for the first one is
        left to its function body, which runs there; the kernels of this library are for the CPU.
    ops
        The operators whose kernels to use, e.g. ["RMSNorm"]; the others run as their function bodies. By default all
        that suit `providers`.

    Raises
    ------
    ImportError
        ONNX Runtime is not installed.
    """
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions() if options is None else options
    if ops is None and providers and _name(providers[0]) != _CPU:
        ops = []
    if ops is not None:
        if not ops:
            return options
        options.add_session_config_entry(_OPS_KEY, ",".join(ops))
    options.register_custom_ops_library(str(library_path()))
    return options


def session(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model,
    providers: Sequence[str | tuple[str, dict[str, Any]]] | None = None,
    *,
    options: onnxruntime.SessionOptions | None = None,
    ops: Sequence[str] | None = None,
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session of a fused model.

    Parameters
    ----------
    model
        A path, or a model in memory. One over 2 GB has to be a path.
    providers
        The execution providers, first choice first; the CPU by default.
    options, ops
        As in `session_options`.

    Examples
    --------
    >>> session = onnxfuse.session("fused.onnx")  # doctest: +SKIP
    >>> session.run(None, {"input_ids": ids})  # doctest: +SKIP
    """
    providers = [_CPU] if providers is None else providers
    options = session_options(options, providers=providers, ops=ops)
    if isinstance(model, ir.Model):
        model = ir.to_proto(model)
    if isinstance(model, onnx.ModelProto):
        model = model.SerializeToString()
    source = model if isinstance(model, bytes) else os.fspath(model)
    return _onnxruntime().InferenceSession(source, options, providers=list(providers))


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
