"""Numbers in names: automatic numbers, as in `dense_4`, and names that differ only in numbers.

No other module parses numbers in names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

Numbers: TypeAlias = tuple[str, ...]
Place: TypeAlias = tuple[str, str]


def texts_and_numbers(name: str) -> list[str]:
    """Return the texts and numbers of a name in turns; a text comes first and last.

    Example:
        >>> texts_and_numbers("conv2")
        ['conv', '2', '']
    """
    return re.split(r"(\d+)", name)


def split(name: str) -> tuple[tuple[str, ...], Numbers]:
    """Return the texts between the numbers of a name, and the numbers.

    Example:
        >>> split("layer1.0.conv2")
        (('layer', '.', '.conv', ''), ('1', '0', '2'))
    """
    found = texts_and_numbers(name)
    return tuple(found[::2]), tuple(found[1::2])


_NUMERAL = re.compile(r"(\d+|(?<!conv\d)(?<!pool\d)(?<!norm\d)(?<=\d)[a-z](?![A-Za-z0-9]))")


def split_numerals(name: str) -> tuple[tuple[str, ...], Numbers]:
    """Split a name like `split`; a letter after a number counts as a number, `a` as 0.

    Example:
        >>> split_numerals("block2b_conv2d")
        (('block', '', '_conv', 'd'), ('2', 'b', '2'))
    """
    found = _NUMERAL.split(name)
    return tuple(found[::2]), tuple(found[1::2])


def numeral_value(numeral: str) -> int:
    """Return the value of a number or a letter.

    Example:
        >>> numeral_value("12"), numeral_value("b")
        (12, 1)
    """
    return int(numeral) if numeral.isdigit() else ord(numeral) - ord("a")


def by_family(names: Sequence[str]) -> list[list[str]]:
    """Group names that differ only in numbers, in order.

    Example:
        >>> by_family(["conv1", "fc", "conv2"])
        [['conv1', 'conv2'], ['fc']]
    """
    families: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        families.setdefault(split(name)[0], []).append(name)
    return list(families.values())


def automatic(component: str) -> tuple[str, int]:
    """Return a component without its automatic number, and the number or -1.

    Example:
        >>> automatic("dense_4"), automatic("dense")
        (('dense', 4), ('dense', -1))
    """
    stem, _, number = component.rpartition("_")
    return (stem, int(number)) if stem and number.isdecimal() else (component, -1)


def sibling_numbers(names: Iterable[str]) -> dict[Place, set[int]]:
    """Return the automatic numbers of siblings, by their place (see `automatic_numbers`).

    Example:
        >>> sibling_numbers(["net/dense", "net/dense_1"])
        {('', 'net'): {-1}, ('net/', 'dense'): {1, -1}}
    """
    found: dict[Place, set[int]] = {}
    for name in names:
        for place, number in automatic_numbers(name):
            found.setdefault(place, set()).add(number)
    return found


def automatic_numbers(name: str) -> Iterator[tuple[Place, int]]:
    """Yield the place and the automatic number of each component of a name.

    The place is the part of the name above the component, and the component without its number.

    Example:
        >>> list(automatic_numbers("net/dense_1"))
        [(('', 'net'), -1), (('net/', 'dense'), 1)]
    """
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


def without_automatic(name: str) -> str:
    """Return a name without the automatic numbers in its components.

    A number may also stand within a component, as in the name of a slot of an optimizer.

    Example:
        >>> without_automatic("sgd/dense_4_kernel_momentum"), without_automatic("net_1/_5/dense_2")
        ('sgd/dense_kernel_momentum', 'net/_5/dense')
    """
    return re.sub(r"(?<=[^/])_\d+(?=[/_]|$)", "", name)
