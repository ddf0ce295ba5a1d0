"""Names that differ in their numbers only, and how the numbers of one side become the other's.

`layer1.0.conv2` belongs to the family `layer#.#.conv#` as its member (1, 0, 2). A whole family goes
to another if one rule does it for all: each number there is a number here, shifted by a constant,
or is a constant.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from keras_trainops.numbering import Numbers, by_family, split, stem

Pairing = dict[str, str]
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
# Short for what others write out, for comparing words.
_LONG = {
    "attn": "attention",
    "bn": "norm",
    "conv2d": "conv",
    "emb": "embedding",
    "fc": "dense",
    "linear": "dense",
    "ln": "norm",
    "normalization": "norm",
    "k": "key",
    "q": "query",
    "v": "value",
}


def partitions(family: Sequence[str]) -> Iterator[list[list[str]]]:
    """The family in parts with some of the numbers in common: first none (one part), then more."""
    numbers = {name: split(name)[1] for name in family}
    for fixed in range(len(varying(list(numbers.values()))) + 1):
        for places in itertools.combinations(varying(list(numbers.values())), fixed):
            parts: dict[Numbers, list[str]] = {}
            for name in family:
                parts.setdefault(tuple(numbers[name][i] for i in places), []).append(name)
            yield list(parts.values())


def varying(members: Sequence[Numbers]) -> list[int]:
    """The places at which not all members have the same number."""
    return [i for i, found in enumerate(zip(*members, strict=True)) if len(set(found)) > 1]


def pairings(
    part: Sequence[str], family: Sequence[str], fits: Callable[[str, str], bool]
) -> list[Pairing]:
    """All ways in which one rule for the numbers leads every member of `part` into `family`.

    Args:
        part: Names that are members of one family.
        family: All members of another one that are to be had.
        fits: Whether a name may go to another.
    """
    goal = {split(name)[1]: name for name in family}
    members = [split(name)[1] for name in part]
    places = varying(members)
    found: list[Pairing] = []

    def extend(prefixes: list[Numbers]) -> None:
        depth = len(prefixes[0])
        if depth == len(next(iter(goal))):
            pairing = {name: goal[prefix] for name, prefix in zip(part, prefixes, strict=True)}
            one_to_one = len(set(pairing.values())) == len(part)
            if (
                one_to_one
                and pairing not in found
                and all(itertools.starmap(fits, pairing.items()))
            ):
                found.append(pairing)
            return
        known = {numbers[: depth + 1] for numbers in goal}
        for column in columns(members, places, {numbers[depth] for numbers in goal}):
            longer = [(*prefix, n) for prefix, n in zip(prefixes, column, strict=True)]
            if known.issuperset(longer):
                extend(longer)

    extend([()] * len(part))
    return found


def columns(
    members: Sequence[Numbers], places: Sequence[int], values: Collection[str]
) -> Iterator[list[str]]:
    """What one number of each member may become: a shifted number of it, or a constant."""
    for place in places:
        numbers = [member[place] for member in members]
        for shift in sorted({int(value) - int(numbers[0]) for value in values}, key=abs):
            yield [shifted(number, shift) for number in numbers]
    for value in sorted(values):
        yield [value] * len(members)


def shifted(number: str, shift: int) -> str:
    """The number's text as it is, or its sum with `shift`."""
    return str(int(number) + shift) if shift else number


def common_words(one: str, other: str) -> int:
    """How many words two names share."""
    return len(_words(one) & _words(other))


def common_end(one: str, other: str) -> int:
    """How many components at the end two names share, but for automatic numbers.

    Example:
        >>> common_end("net.encoder.dense_4", "encoder/dense")
        2
    """
    pairs = zip(reversed(_stems(one)), reversed(_stems(other)), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


@functools.lru_cache(maxsize=1 << 16)
def _stems(name: str) -> list[str]:
    return [stem(part) for part in re.split("[/.]", name)]


@functools.lru_cache(maxsize=1 << 16)
def _words(name: str) -> set[str]:
    found = (word.lower() for word in _WORD.findall(name))
    return {_LONG.get(word, word).removesuffix("s") for word in found}


def numbers_change(pairing: Mapping[str, str]) -> bool:
    """Whether a number of a name becomes another one, so that the order of numbers decides."""
    if len(by_family([*pairing])) > 1 or len(by_family([*pairing.values()])) > 1:
        return any(name != other for name, other in pairing.items())  # `dense` beside `dense_1`
    pairs = [(split(name)[1], split(other)[1]) for name, other in pairing.items()]
    places = varying([numbers for numbers, _ in pairs])
    targets = varying([numbers for _, numbers in pairs])
    return not all(
        any(all(here[i] == there[j] for here, there in pairs) for i in places) for j in targets
    )
