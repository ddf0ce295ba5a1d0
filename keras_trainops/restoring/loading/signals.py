"""Signals that wait: their handlers, which may raise, run when a block is done."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

_Handler = Callable[[int, "FrameType | None"], Any]


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Handlers of signals that are Python's run when the block is done, once each.

    What they raise, as Ctrl-C its `KeyboardInterrupt`, is raised then. Signals that are ignored, or
    that have their default or a handler in C, are left alone, and so are handlers that the block
    sets. Python runs handlers in the main thread only: in another one nothing has to wait.
    """
    waiting: dict[int, FrameType | None] = {}
    taken: dict[int, _Handler] = {}

    def note(number: int, frame: FrameType | None) -> None:
        waiting.setdefault(number, frame)

    try:
        if threading.current_thread() is threading.main_thread():
            for each in signal.valid_signals():
                handler = signal.getsignal(each)
                if callable(handler):
                    taken[each] = handler
                    signal.signal(each, note)
        yield
    finally:
        calls = [functools.partial(_raise, error) for error in _give_back(taken, note)]
        calls += [functools.partial(taken[each], each, frame) for each, frame in waiting.items()]
        _call_all(calls)


def _call_all(calls: Sequence[Callable[[], Any]]) -> None:
    """Calls all of them, whatever they raise: each error has the one before it as its context."""
    if calls:
        try:
            calls[0]()
        finally:
            _call_all(calls[1:])


def _give_back(taken: dict[int, _Handler], note: _Handler) -> list[BaseException]:
    """Sets the handlers again, all of them, whatever those raise that are set already."""
    raised: list[BaseException] = []
    left = list(taken)
    while left:
        try:
            while left:
                if signal.getsignal(left[-1]) is note:  # else the block has set another one
                    signal.signal(left[-1], taken[left[-1]])
                left.pop()
        except BaseException as error:
            raised.append(error)
    return raised


def _raise(error: BaseException) -> None:
    raise error
