"""Work on assignments in a few threads, with results in order."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

THREADS = 4  # each with one piece of a tensor in memory

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    may_be_in_thread: Callable[[Item], bool],
) -> Iterator[Result]:
    """Yield the result of each item, in order, whichever thread finishes first.

    Args:
        work: Called with each item.
        items: The items.
        may_be_in_thread: Returns False for items that need the calling thread.
    """
    with _threads() as in_thread:
        futures = [in_thread.submit(work, i) if may_be_in_thread(i) else None for i in items]
        for number, item in enumerate(items):
            future, futures[number] = futures[number], None  # drops the result
            yield future.result() if future else work(item)


@contextlib.contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    threads = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)  # after an error, drop the remaining work
