"""Patterns for error messages that exclude exactly the variables that failed."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from keras_trainops.paths import exact_pattern, runs

_MOST = 6  # a longer list would not be pasted


def exclude_patterns(failing: Collection[str], paths: Sequence[str]) -> list[str]:
    """Return a few patterns that match all of `failing` and no other path.

    Args:
        failing: Paths to match.
        paths: All paths.

    Returns:
        Patterns for `exclude=`; empty if too many would be needed.

    Example:
        >>> exclude_patterns({"a/w", "a/x", "b/lora"}, ["a/w", "a/x", "b/lora", "b/w"])
        ['a', 'lora']
    """
    matches = _matches(failing, paths)
    left, chosen = set(failing), list[str]()
    while left and len(chosen) <= _MOST:
        run = _best_run(matches, left)
        if run:
            chosen.append(re.escape(run))
            left -= matches[run]
        else:
            path = min(left)  # part of another path, so only an anchored pattern matches it alone
            chosen.append(exact_pattern(path))
            left.discard(path)
    return chosen if len(chosen) <= _MOST else []


def _matches(failing: Collection[str], paths: Sequence[str]) -> dict[str, set[str]]:
    """Return the failing paths that contain each run of components, without runs of other paths."""
    others: set[str] = set()
    others.update(*(runs(path) for path in paths if path not in failing))
    found: dict[str, set[str]] = {}
    for path in paths:
        if path in failing:
            for run in runs(path) - others:
                found.setdefault(run, set()).add(path)
    return found


def _best_run(matches: Mapping[str, set[str]], left: set[str]) -> str:
    """Return the shortest of the runs that match most paths; empty if none matches any."""
    best = min(matches, key=lambda run: (-len(matches[run] & left), len(run), run), default="")
    return best if best and matches[best] & left else ""
