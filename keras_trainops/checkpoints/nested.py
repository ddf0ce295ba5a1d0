"""Containers in containers as one mapping, with names joined by `/`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from keras_trainops.errors import RestoreError

# More names than this, and than a hundred for each entry that there is: lists that hold a list
# twice, which holds another twice, and so on, give two to the power of their depth.
_MANY = 10_000
_EACH = 100
_DEEPEST = 100


def flattened(
    root: Any,
    entries: Callable[[Any, str], list[tuple[str, Any]] | None],
    location: str,
) -> Iterator[tuple[str, Any]]:
    """Names and values, in order; a root that is a value itself has no name.

    Args:
        root: The outermost container, or a value alone.
        entries: What the container under a name holds, by name; None for what is a value.
        location: What all this is, for messages.

    Raises:
        RestoreError: If a container holds itself, two values have one name, containers lie more
            than 100 deep in each other, or hold each other so often that names would not end.
    """
    names, containers, entries_held = set[str](), dict[int, Any](), 0
    # What is still to be looked at, the next at the end; `above` are the containers it lies in.
    waiting: list[tuple[str, Any, frozenset[int]]] = [("", root, frozenset())]
    while waiting:
        name, value, above = waiting.pop()
        inside = entries(value, name)
        if inside is not None:
            if id(value) in above:
                raise RestoreError(f"{location} holds itself, under {name!r}.")
            if len(above) > _DEEPEST:
                raise RestoreError(f"{location} is nested more than {_DEEPEST} deep.")
            if id(value) not in containers:
                containers[id(value)] = value  # kept, so that no other has its `id`
                entries_held += len(inside)
            deeper = above | {id(value)}
            for key, entry in reversed(inside):
                waiting.append((f"{name}/{key}" if name else key, entry, deeper))
            continue
        if name in names:
            raise RestoreError(
                f"Two arrays of {location} have the name {name!r}, as names in names are joined by "
                "'/'. Rename one of them."
            )
        names.add(name)
        if len(names) > _MANY and len(names) > _EACH * entries_held:
            raise RestoreError(
                f"{location} holds the same containers again and again: {entries_held:,} entries "
                f"under more than {len(names) - 1:,} names."
            )
        yield name, value
