"""What belongs to one process: children that it forks, as for loading data, leave it alone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

_LETTING_GO: list[Callable[[], None]] = []
_FORKING = threading.local()


def let_go_in_children(let_go: Callable[[], None]) -> None:
    """Has `let_go` called in every process that is forked from now on, first thing."""
    _LETTING_GO.append(let_go)


def forget(let_go: Callable[[], None]) -> None:
    """Takes that back."""
    if let_go in _LETTING_GO:
        _LETTING_GO.remove(let_go)


def _before() -> None:
    # A SIGTERM that a child gets before it let go waits, and is not taken for one of the parent's.
    if _LETTING_GO:
        _FORKING.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _in_child() -> None:
    for let_go in list(_LETTING_GO):
        let_go()
    _LETTING_GO.clear()
    _after()


def _after() -> None:
    mask = getattr(_FORKING, "mask", None)
    if mask is not None:
        _FORKING.mask = None
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_in_child)
