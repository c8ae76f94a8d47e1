"""Finding fusions: every file of the package counts, and contradictions are errors that name both sides."""

import importlib
import sys

import pytest

from onnxfuse import catalog
from onnxfuse.catalog import CatalogError

FUSION = '''
from onnxfuse.dsl import fusion, op, tensor

@fusion(stage="elementwise", op={op!r})
def {name}(x=tensor()):
    """Documentation."""
    return op.Exp(-x)
'''
REWRITE = """
@{name}.rewrite
def fused_{name}(new, m):
    return new.Fused(m.x)
"""


def source(name, op=None):
    return (FUSION + REWRITE).format(name=name, op=op)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write pattern files and operator folders as packages of their own, and point the catalogue at them."""

    def write(files, operators=("fused",)):
        for name, content in files.items():
            path = tmp_path / "sample_patterns" / f"{name}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
        (tmp_path / "sample_patterns" / "__init__.py").write_text("")
        for folder in operators:
            (tmp_path / "sample_ops" / folder).mkdir(parents=True)
        (tmp_path / "sample_ops" / "__init__.py").write_text("")

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(catalog, "PATTERNS", "sample_patterns")
    monkeypatch.setattr(catalog, "CUSTOM_OPS", "sample_ops")
    importlib.invalidate_caches()
    yield write
    for name in [name for name in sys.modules if name.startswith(("sample_patterns", "sample_ops"))]:
        del sys.modules[name]


def test_every_file_counts_in_the_order_of_names(package):
    package({"b": source("swish", "Fused"), "a": source("zero") + source("mish")})
    assert [made.name for made in catalog.fusions()] == ["mish", "swish", "zero"]


def test_an_imported_fusion_belongs_to_the_file_that_defines_it(package):
    package({"a": source("swish"), "b": "from sample_patterns.a import swish\n" + source("mish")})
    assert [made.name for made in catalog.fusions()] == ["mish", "swish"]


def test_two_fusions_of_one_name_are_refused(package):
    package({"a": source("swish"), "b": source("swish")})
    with pytest.raises(CatalogError, match=r"two fusions are named swish: .*a\.py:\d+ and .*b\.py:\d+"):
        catalog.fusions()


def test_two_fusions_of_one_name_in_one_file_are_refused(package):
    package({"a": source("swish") + "first = swish\n" + source("swish")})
    with pytest.raises(CatalogError, match="two fusions are named swish"):
        catalog.fusions()


def test_a_fusion_without_rewrite_is_refused(package):
    package({"a": FUSION.format(name="swish", op=None)})
    with pytest.raises(CatalogError, match=r"swish has no rewrite; add a function under @swish\.rewrite"):
        catalog.fusions()


def test_a_file_without_fusion_is_refused(package):
    package({"a": "x = 1\n"})
    with pytest.raises(CatalogError, match=r"a\.py defines no fusion"):
        catalog.fusions()


def test_an_operator_without_folder_is_refused(package):
    package({"a": source("swish", "SkipRMSNorm")})
    with pytest.raises(CatalogError, match="swish builds SkipRMSNorm, which has no folder in sample_ops"):
        catalog.fusions()


def test_folders_are_named_after_operators_in_their_languages_case(package):
    package({"a": source("swish", "SkipRMSNorm")}, operators=["skip_rms_norm"])
    assert [made.op for made in catalog.fusions()] == ["SkipRMSNorm"]


def test_without_the_operators_package_nothing_is_said_about_folders(package, monkeypatch):
    monkeypatch.setattr(catalog, "CUSTOM_OPS", "no_such_package")
    package({"a": source("swish", "Missing")})
    assert [made.name for made in catalog.fusions()] == ["swish"]
