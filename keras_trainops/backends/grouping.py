"""Group what is sent, so that a message is not large."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def grouped(items: Iterable[T], nbytes: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Yield items in groups of at most so many bytes, in order; a larger item is alone.

    Args:
        items: The items.
        nbytes: Returns the size of an item.
        most: The number of bytes.

    Example:
        >>> list(grouped([3, 2, 9, 1], lambda size: size, 5))
        [[3, 2], [9], [1]]
    """
    group: list[T] = []
    size = 0
    for item in items:
        more = nbytes(item)
        if group and size + more > most:
            yield group
            group, size = [], 0
        group.append(item)
        size += more
    if group:
        yield group
