"""Finds the fusions: every `Fusion` in a module of the package `onnxfuse.patterns`. Nothing central to edit."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType

from onnxfuse.fusion import Fusion

PATTERNS = "onnxfuse.patterns"
CUSTOM_OPS = "onnxfuse.custom_ops"


class CatalogError(Exception):
    """The installed fusions contradict each other or the installed operators."""


def fusions() -> tuple[Fusion, ...]:
    """All fusions, by name.

    Raises
    ------
    CatalogError
        Two fusions share a name, a fusion has no rewrite, a pattern file holds no fusion, or a fusion builds an
        operator that `onnxfuse.custom_ops` does not have.
    """
    folders = operator_folders()
    found: dict[str, Fusion] = {}
    for module in _modules(PATTERNS):
        for made in fusions_of(module):
            _check(made, folders)
            other = found.setdefault(made.name, made)
            if other is not made:
                raise CatalogError(f"two fusions are named {made.name}: {other.location} and {made.location}")
    return tuple(found[name] for name in sorted(found))


def fusions_of(module: ModuleType) -> list[Fusion]:
    """The fusions that `module` defines, in the order of the file."""
    found = {value: None for value in vars(module).values() if isinstance(value, Fusion)}
    own = [made for made in found if made.module == module.__name__]
    if not own:
        raise CatalogError(f"{module.__file__} defines no fusion; decorate its pattern function with @fusion(...)")
    return own


def operator_folders() -> frozenset[str] | None:
    """Names of the folders of `onnxfuse.custom_ops` without underscores; None if that package is not installed."""
    if importlib.util.find_spec(CUSTOM_OPS) is None:
        return None
    package = importlib.import_module(CUSTOM_OPS)
    entries = (entry for place in package.__path__ if Path(place).is_dir() for entry in Path(place).iterdir())
    return frozenset(entry.name.replace("_", "") for entry in entries if entry.is_dir())


def _modules(package_name: str) -> list[ModuleType]:
    package = importlib.import_module(package_name)
    names = sorted(found.name for found in pkgutil.iter_modules(package.__path__))
    return [importlib.import_module(f"{package_name}.{name}") for name in names]


def _check(made: Fusion, folders: frozenset[str] | None) -> None:
    if made.rewriting is None:
        raise CatalogError(f"{made.location}: {made.name} has no rewrite; add a function under @{made.name}.rewrite")
    if made.op is not None and folders is not None and made.op.lower() not in folders:
        raise CatalogError(f"{made.location}: {made.name} builds {made.op}, which has no folder in {CUSTOM_OPS}")
