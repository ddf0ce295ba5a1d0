"""What an error may advise: patterns that leave out what failed, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from keras_trainops.paths import runs

_MOST = 6  # patterns that somebody would still paste


def exclude_patterns(failing: Collection[str], paths: Sequence[str]) -> list[str]:
    """Few patterns that match all of `failing`, and none of the other paths.

    Returns:
        Patterns for `exclude=`; empty if it takes too many.

    Example:
        >>> exclude_patterns({"a/w", "a/x", "b/lora"}, ["a/w", "a/x", "b/lora", "b/w"])
        ['a', 'lora']
    """
    others = {run for path in paths if path not in failing for run in runs(path)}
    covers: dict[str, set[str]] = {}
    for path in paths:
        if path in failing:
            for run in runs(path) - others:
                covers.setdefault(run, set()).add(path)
    left, chosen = set(failing), list[str]()
    while left and len(chosen) <= _MOST:
        best = min(covers, key=lambda run: (-len(covers[run] & left), len(run), run), default="")
        if not best or not covers[best] & left:
            # A path that lies within another: only its whole says which.
            best = min(left)
            chosen.append(f"^{re.escape(best)}$")
            left.discard(best)
            continue
        chosen.append(re.escape(best))
        left -= covers[best]
    return chosen if len(chosen) <= _MOST else []
