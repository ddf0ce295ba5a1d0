"""Numbers in names: automatic numbers, as in `dense_4`, and names that differ only in numbers.

No other module parses numbers in names.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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


class NumberedNames:
    """Names by their texts and numbers, to count those that have some of them.

    Args:
        names: The names.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._numbers: dict[tuple[str, ...], list[Numbers]] = {}
        for texts, numbers in map(split, dict.fromkeys(names)):
            self._numbers.setdefault(texts, []).append(numbers)
        self._tables: dict[object, dict[Numbers, list[Numbers]]] = {}

    def count(self, texts: Sequence[str], choices: Sequence[Collection[str] | None]) -> int:
        """Return how many names have these texts, and one of the choices at each place.

        Args:
            texts: The texts between the numbers.
            choices: The numbers that may stand at each place; None for any.

        Example:
            >>> NumberedNames(["a1.b0", "a1.b7", "a2.b0"]).count(("a", ".b", ""), [["1"], None])
            2
        """
        given = {place: each for place, each in enumerate(choices) if each is not None}
        one = [place for place, each in given.items() if len(each) == 1]
        several = [place for place in given if place not in one]
        found = [self._with(texts, [*one, place], given) for place in several]
        fewest = min(found or [self._with(texts, one, given)], key=lambda f: sum(map(len, f)))
        if len(several) < 2:
            return sum(map(len, fewest))
        return sum(
            all(numbers[place] in given[place] for place in several)
            for numbers in itertools.chain.from_iterable(fewest)
        )

    def _with(
        self, texts: Sequence[str], places: Sequence[int], given: Mapping[int, Collection[str]]
    ) -> list[list[Numbers]]:
        """Return lists of the numbers of names that have given ones at some places."""
        key = (tuple(texts), tuple(places))
        if key not in self._tables:
            table = self._tables[key] = {}
            for numbers in self._numbers.get(key[0], ()):
                table.setdefault(tuple(numbers[place] for place in places), []).append(numbers)
        table = self._tables[key]
        wanted = itertools.product(*(given[place] for place in places))
        return [table[numbers] for numbers in wanted if numbers in table]


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
