"""Delay signal handlers, which may raise, until a block has finished."""

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
    """Run Python signal handlers once each after the block, instead of during it.

    Their exceptions, such as `KeyboardInterrupt` on Ctrl-C, are raised then. Signals that are
    ignored, or that have the default handler or one in C, are left alone, and so are handlers that
    the block sets. Python runs handlers only in the main thread, so other threads need no delay.
    """
    waiting: dict[int, FrameType | None] = {}
    taken: dict[int, _Handler] = {}

    def remember(number: int, frame: FrameType | None) -> None:
        waiting.setdefault(number, frame)

    try:
        if threading.current_thread() is threading.main_thread():
            for each in signal.valid_signals():
                handler = signal.getsignal(each)
                if callable(handler):
                    taken[each] = handler
                    signal.signal(each, remember)
        yield
    finally:
        calls = [functools.partial(_raise, error) for error in _set_again(taken, remember)]
        calls += [functools.partial(taken[each], each, frame) for each, frame in waiting.items()]
        _call_all(calls)


def _call_all(calls: Sequence[Callable[[], Any]]) -> None:
    """Call all functions, even if some raise; each error is the context of the next."""
    if calls:
        try:
            calls[0]()
        finally:
            _call_all(calls[1:])


def _set_again(taken: dict[int, _Handler], remember: _Handler) -> list[BaseException]:
    """Set all handlers again, and return the errors of handlers that run in between."""
    raised: list[BaseException] = []
    left = list(taken)
    while left:
        try:
            while left:
                if signal.getsignal(left[-1]) is remember:  # else the block has set another
                    signal.signal(left[-1], taken[left[-1]])
                left.pop()
        except BaseException as error:
            raised.append(error)
    return raised


def _raise(error: BaseException) -> None:
    raise error
