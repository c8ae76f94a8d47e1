"""The README's table names every fusion there is, and no other."""

import re
from pathlib import Path

from onnxfuse import catalog

README = Path(__file__).parent.parent / "README.md"


def test_the_table_of_fusions_is_complete():
    table = README.read_text(encoding="utf-8").split("## Fusions")[1].split("\n\nOperators")[0]
    named = {
        name
        for row in table.splitlines()
        for name in re.findall(r"`(\w+)`", row.split("|")[1:2][0] if "|" in row else "")
    }
    assert named == {fusion.name for fusion in catalog.fusions()}
