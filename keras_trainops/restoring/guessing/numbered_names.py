"""Pair names that differ only in numbers, by one rule for the whole family.

`layer1.0.conv2` belongs to the family `layer#.#.conv#` as its member (1, 0, 2). A family is paired
with another one if one rule works for all members: each number there is a number here, shifted by
a constant, or is a constant.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from keras_trainops.numbering import Numbers, by_family, split, stem

LayerPairs: TypeAlias = dict[str, str]  # layer of the checkpoint -> layer of the model
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_LONG_FORMS = {
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
    """Yield the family split by some of its numbers: first by none (one part), then by more."""
    numbers = {name: split(name)[1] for name in family}
    places = varying(list(numbers.values()))
    for count in range(len(places) + 1):
        for fixed in itertools.combinations(places, count):
            parts: dict[Numbers, list[str]] = {}
            for name in family:
                parts.setdefault(tuple(numbers[name][i] for i in fixed), []).append(name)
            yield list(parts.values())


def varying(members: Sequence[Numbers]) -> list[int]:
    """Return the positions at which not all members have the same number."""
    return [i for i, column in enumerate(zip(*members, strict=True)) if len(set(column)) > 1]


def pairings(
    part: Sequence[str], family: Sequence[str], fits: Callable[[str, str], bool]
) -> list[LayerPairs]:
    """Return all ways in which one rule for numbers leads every member of `part` into `family`.

    Args:
        part: Members of one family.
        family: All free members of another family.
        fits: Returns True if a name may be paired with another.
    """
    goal = {split(name)[1]: name for name in family}
    members = [split(name)[1] for name in part]
    found: list[LayerPairs] = []
    for renumbered in _renumberings(members, list(goal), [()] * len(part)):
        pairs = {name: goal[numbers] for name, numbers in zip(part, renumbered, strict=True)}
        one_to_one = len(set(pairs.values())) == len(part)
        if one_to_one and pairs not in found and all(itertools.starmap(fits, pairs.items())):
            found.append(pairs)
    return found


def _renumberings(
    members: Sequence[Numbers], goal: Sequence[Numbers], prefixes: Sequence[Numbers]
) -> Iterator[Sequence[Numbers]]:
    """Yield the numbers that each rule makes of all members, if the goal contains them.

    Args:
        members: The numbers of each member.
        goal: The numbers to choose from, all of one length.
        prefixes: The first numbers of each member under the rule so far.
    """
    depth = len(prefixes[0])
    if depth == len(goal[0]):
        yield prefixes
        return
    known = {numbers[: depth + 1] for numbers in goal}
    for column in _columns(members, {numbers[depth] for numbers in goal}):
        longer = [(*prefix, number) for prefix, number in zip(prefixes, column, strict=True)]
        if known.issuperset(longer):
            yield from _renumberings(members, goal, longer)


def _columns(members: Sequence[Numbers], values: Collection[str]) -> Iterator[list[str]]:
    """Yield what one number may become for each member: a shifted number of it, or a constant."""
    for place in varying(members):
        numbers = [member[place] for member in members]
        for shift in sorted({int(value) - int(numbers[0]) for value in values}, key=abs):
            yield [shifted(number, shift) for number in numbers]
    for value in sorted(values):
        yield [value] * len(members)


def shifted(number: str, shift: int) -> str:
    """Return the text of a number plus `shift`; with a shift of 0, the unchanged text."""
    return str(int(number) + shift) if shift else number


def common_words(one: str, other: str) -> int:
    """Return the number of words that two names have in common."""
    return len(_words(one) & _words(other))


def common_end(one: str, other: str) -> int:
    """Return the number of last components that are equal except for automatic numbers.

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
    found = map(str.lower, _WORD.findall(name))
    return {_LONG_FORMS.get(word, word).removesuffix("s") for word in found}


def numbers_change(pairs: Mapping[str, str]) -> bool:
    """Return True if a number becomes another one, so the pairs rest on order."""
    if len(by_family([*pairs])) > 1 or len(by_family([*pairs.values()])) > 1:
        return any(name != other for name, other in pairs.items())  # `dense` next to `dense_1`
    return not _varying_columns(pairs.values()) <= _varying_columns(pairs)


def _varying_columns(names: Iterable[str]) -> set[Numbers]:
    """Return the numbers of all names at each position where they vary."""
    columns = zip(*(split(name)[1] for name in names), strict=True)
    return {column for column in columns if len(set(column)) > 1}
