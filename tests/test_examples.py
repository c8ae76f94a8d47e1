"""Every example runs and prints what it promises."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
PRINTED = {
    "01_export_a_tiny_llama.py": "tiny_llama.onnx: ",
    "02_fuse_and_run.py": "'GatedMLP': 2",
    "03_why_not.py": "expected constant scalar, found 'epsilon' float32[]",
    "04_write_a_fusion.py": "['HardSwish']",
    "05_decode_with_a_cache.py": "[1, 2, 3, ",
    "06_without_the_library.py": "ONNX Runtime loads it without onnxfuse",
    "07_share_the_cache.py": "[1, 2, 3, ",
}


def run(name: str, folder: Path) -> str:
    command = [sys.executable, str(EXAMPLES / name)]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_every_example_is_run():
    assert sorted(PRINTED) == sorted(path.name for path in EXAMPLES.glob("[0-9]*.py"))


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_it_promises(name, tmp_path):
    assert PRINTED[name] in run(name, tmp_path)


def test_decoding_chooses_the_tokens_of_the_original(tmp_path):
    fused, original = run("05_decode_with_a_cache.py", tmp_path).splitlines()
    assert fused == original
    assert run("07_share_the_cache.py", tmp_path).splitlines() == [fused]
