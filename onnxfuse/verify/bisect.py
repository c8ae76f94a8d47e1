"""Finding the fusion to blame when a whole model differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def guilty(fusions: Sequence[str], passes: Callable[[frozenset[str]], bool]) -> list[str]:
    """A smallest set of `fusions` that has to be skipped for the model to pass; empty if skipping all does not help.

    Parameters
    ----------
    fusions : names
        The fusions that were applied.
    passes : callable
        Whether the model passes when rewritten without the given fusions. It is called about 2 * log2(n) times for one
        guilty fusion among n, at most about n^2 times.
    """
    if not passes(frozenset(fusions)):
        return []
    blamed = list(fusions)  # skipping these is known to help; delta debugging makes the list minimal
    parts = 2
    while len(blamed) > 1:
        size = -(-len(blamed) // parts)
        groups = [blamed[start : start + size] for start in range(0, len(blamed), size)]
        smaller = next((group for group in groups if passes(frozenset(group))), None)
        if smaller is not None:
            blamed, parts = smaller, 2
            continue
        rests = ([name for name in blamed if name not in group] for group in groups) if len(groups) > 2 else iter(())
        smaller = next((rest for rest in rests if passes(frozenset(rest))), None)
        if smaller is not None:
            blamed, parts = smaller, max(parts - 1, 2)
        elif parts >= len(blamed):
            break
        else:
            parts = min(2 * parts, len(blamed))
    return blamed
