"""The table of the model zoo at the end of pytest's output: a line a group, from the outcome of test_zoo.py's tests."""

from __future__ import annotations

from statistics import median

import zoo

COLUMNS = {
    "equal with library": ("test_equal_with_the_library",),
    "equal without": ("test_equal_without_the_library",),
    "fully fused": ("test_llama_is_fully_fused", "test_near_miss_keeps_its_other_fusions"),
    "nothing too much": ("test_no_more_is_fused_than_is_there",),
    "explained": ("test_explanation_names_the_cause",),
    "stable": ("test_bytes_are_reproducible", "test_rewriting_the_result_changes_nothing"),
}


def lines(reporter) -> list[str]:
    """The table; empty if no test of the zoo ran. A cell is the models that passed, of those tested if some failed."""
    groups = {entry.name: entry.group for entry in zoo.entries()}
    passed: dict[tuple[str, str], dict[str, bool]] = {}  # (group, test) -> model -> whether it passed
    nodes: dict[str, list[int]] = {}
    for outcome in ("passed", "failed", "error"):
        for report in reporter.getreports(outcome):
            _, _, test = report.nodeid.partition("test_zoo.py::")
            test, _, name = test.rstrip("]").partition("[")
            if name in groups:
                models = passed.setdefault((groups[name], test), {})
                models[name] = models.get(name, True) and report.passed
                nodes.setdefault(groups[name], []).extend(n for key, n in report.user_properties if key == "nodes")
    rows = [("group", "models", *COLUMNS, "median nodes")] if passed else []
    for group in sorted({group for group, _ in passed}):
        models = {name for (of, _), found in passed.items() if of == group for name in found}
        cells = [
            _cell([passed[group, test] for test in tests if (group, test) in passed]) for tests in COLUMNS.values()
        ]
        rows.append((group, str(len(models)), *cells, f"{median(nodes[group]):g}" if nodes.get(group) else ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cell(tests: list[dict[str, bool]]) -> str:
    verdicts = {name: all(found.get(name, True) for found in tests) for test in tests for name in test}
    good = sum(verdicts.values())
    return f"{good} of {len(verdicts)}" if good < len(verdicts) else str(good or "")
