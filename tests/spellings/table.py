"""The table of the spellings at the end of pytest's output: a line a family, from what test_spellings.py recorded."""

from __future__ import annotations

from collections import Counter, defaultdict

COLUMNS = (
    *("spellings", "fused", "bfloat16", "mutations", "refused by matching", "by verification"),
    *("shifts", "right", "wrong rewrites", "refused"),
)


def lines(reporter) -> list[str]:
    """The table; empty if no test of the spellings ran."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in ("passed", "failed"):
        for report in reporter.getreports(outcome):
            recorded = dict(report.user_properties) if "test_spellings.py" in report.nodeid else {}
            if "family" in recorded:
                family = recorded.pop("family")
                counts[family].update(recorded)
    if not counts:
        return []
    counts["all"] = sum(counts.values(), Counter())
    rows = [("family", *COLUMNS), *((family, *(str(found[c]) for c in COLUMNS)) for family, found in counts.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
