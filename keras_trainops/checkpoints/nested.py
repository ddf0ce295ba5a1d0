"""Flatten nested containers into one mapping, with names joined by `/`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from keras_trainops.errors import RestoreError

# Raise beyond this many names if they also exceed `_EACH` times the number of stored entries. A
# list that contains a list twice, which contains another twice, and so on, has 2 ** depth names.
_MANY = 10_000
_EACH = 100
_DEEPEST = 100

Entries = list[tuple[str, Any]]


def flattened(
    root: Any, entries: Callable[[Any, str], Entries | None], location: str
) -> Iterator[tuple[str, Any]]:
    """Yield names and values in order. If the root is itself a value, its name is empty.

    Args:
        root: The outermost container, or a single value.
        entries: Returns the named entries of a container, given it and its own name; None for a
            value.
        location: A description of `root` for messages.

    Raises:
        RestoreError: If a container contains itself, two values have the same name, containers are
            nested more than 100 deep, or shared containers make the number of names explode.
    """
    names = _Names(location)
    # A stack of the items to visit. `above` are the ids of the containers around an item.
    waiting = [_Item("", root, frozenset())]
    while waiting:
        item = waiting.pop()
        inside = entries(item.value, item.name)
        if inside is None:
            names.add(item.name)
            yield item.name, item.value
            continue
        _refuse_too_deep(item, location)
        names.count(item.value, len(inside))
        waiting += _inside(item, inside)


class _Item(NamedTuple):
    name: str
    value: Any
    above: frozenset[int]


def _inside(container: _Item, entries: Entries) -> Iterator[_Item]:
    """Yield the entries last to first, as a stack takes them."""
    above = container.above | {id(container.value)}
    for key, value in reversed(entries):
        yield _Item(f"{container.name}/{key}" if container.name else key, value, above)


def _refuse_too_deep(container: _Item, location: str) -> None:
    if id(container.value) in container.above:
        raise RestoreError(f"{location} contains itself, under {container.name!r}.")
    if len(container.above) > _DEEPEST:
        raise RestoreError(f"{location} is nested more than {_DEEPEST} deep.")


class _Names:
    """The names found so far, compared with the entries that containers actually contain."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._names: set[str] = set()
        self._containers: dict[int, Any] = {}  # keeps them alive, so that ids stay unique
        self._entries = 0

    def count(self, container: Any, size: int) -> None:
        """Count the entries of a container, once however often it is visited."""
        if id(container) not in self._containers:
            self._containers[id(container)] = container
            self._entries += size

    def add(self, name: str) -> None:
        """Add a name; raise if it is taken, or if names outgrow the entries."""
        if name in self._names:
            raise RestoreError(
                f"Two arrays of {self._location} have the name {name!r}, as nested names are "
                "joined by '/'. Rename one of them."
            )
        self._names.add(name)
        if len(self._names) > max(_MANY, _EACH * self._entries):
            raise RestoreError(
                f"{self._location} contains the same containers repeatedly: "
                f"{self._entries:,} entries under more than {len(self._names) - 1:,} names."
            )
