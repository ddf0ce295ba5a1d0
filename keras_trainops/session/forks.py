"""What belongs to one process: children that it forks, as for loading data, leave it alone."""

from __future__ import annotations

import os
from collections.abc import Callable

_LETTING_GO: list[Callable[[], None]] = []


def let_go_in_children(let_go: Callable[[], None]) -> None:
    """Has `let_go` called in every process that is forked from now on, first thing."""
    _LETTING_GO.append(let_go)


def forget(let_go: Callable[[], None]) -> None:
    """Takes that back."""
    if let_go in _LETTING_GO:
        _LETTING_GO.remove(let_go)


def _in_child() -> None:
    for let_go in list(_LETTING_GO):
        let_go()
    _LETTING_GO.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
