"""Numbers in names: automatic ones, as in `dense_4`, and families of names that differ in numbers.

The only parser of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

Numbers = tuple[str, ...]


def split(name: str) -> tuple[tuple[str, ...], Numbers]:
    """What stands between the numbers of a name, and the numbers.

    Example:
        >>> split("layer1.0.conv2")
        (('layer', '.', '.conv', ''), ('1', '0', '2'))
    """
    parts = re.split(r"(\d+)", name)
    return tuple(parts[::2]), tuple(parts[1::2])


def by_family(names: Sequence[str]) -> list[list[str]]:
    """The names of each family, in order."""
    families: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        families.setdefault(split(name)[0], []).append(name)
    return list(families.values())


def automatic(component: str) -> tuple[str, int]:
    """A component without its automatic number, and that; -1 if there is none.

    Example:
        >>> automatic("dense_4"), automatic("dense")
        (('dense', 4), ('dense', -1))
    """
    stem, _, number = component.rpartition("_")
    return (stem, int(number)) if stem and number.isdecimal() else (component, -1)


def siblings(names: Iterable[str]) -> dict[tuple[str, str], set[int]]:
    """The automatic numbers that there are, by what is above a component and the component.

    Example:
        >>> siblings(["net/dense", "net/dense_1"])
        {('', 'net'): {-1}, ('net/', 'dense'): {1, -1}}
    """
    found: dict[tuple[str, str], set[int]] = {}
    for name in names:
        for place, number in automatic_places(name):
            found.setdefault(place, set()).add(number)
    return found


def automatic_places(name: str) -> Iterator[tuple[tuple[str, str], int]]:
    """Each component as what is above it and itself without its automatic number, and that."""
    above = ""
    for part in name.split("/"):
        stem, number = automatic(part)
        yield (above, stem), number
        above += f"{part}/"


def stem(component: str) -> str:
    """Return a component without its automatic number.

    Example:
        >>> stem("dense_4"), stem("_5")
        ('dense', '_5')
    """
    return automatic(component)[0]
