"""Resources of one process, which forked children such as data-loader workers release."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

_RELEASES: list[Callable[[], None]] = []
_FORKING = threading.local()


def register(release: Callable[[], None]) -> None:
    """Call `release` first thing in every process that is forked from now on."""
    _RELEASES.append(release)


def unregister(release: Callable[[], None]) -> None:
    """Undo `register`; do nothing if `release` is not registered."""
    if release in _RELEASES:
        _RELEASES.remove(release)


def _before_fork() -> None:
    # Block SIGTERM until the child has released everything: the handler that it inherits would
    # take the signal for one to the parent.
    if _RELEASES:
        _FORKING.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _in_child() -> None:
    for release in list(_RELEASES):
        release()
    _RELEASES.clear()
    _restore_signals()


def _restore_signals() -> None:
    mask = getattr(_FORKING, "mask", None)
    if mask is not None:
        _FORKING.mask = None
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_restore_signals, after_in_child=_in_child
    )
