"""Find the names that share the largest part of their words with another."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple, TypeAlias

from keras_trainops.restoring.guessing.candidates import Tally
from keras_trainops.restoring.guessing.columns import Column, Kind

Words: TypeAlias = frozenset[str]
_GENERIC = frozenset({"conv", "norm", "dense", "proj", "output"})
_FEW = 16  # sets of words that are compared one by one


class _Best(NamedTuple):
    """The highest likeness; how many columns have it, and the sum of their numbers."""

    likeness: float = 0.0
    columns: int = 0
    total: int = 0

    def or_better(self, likeness: float, columns: int, total: int) -> _Best:
        """Return the best, given columns of some likeness; several may share it."""
        if not columns or likeness < self.likeness:
            return self
        if likeness > self.likeness:
            return _Best(likeness, columns, total)
        return _Best(likeness, self.columns + columns, self.total + total)


class _Sets:
    """Sets of words, each with its columns.

    Most sets share a few words, such as the name of the network. Sets that share with another only
    words that many have are alike if they share the same ones and are equally large, so only one
    of each such pattern is compared.

    Args:
        every: All sets.
    """

    def __init__(self, every: Iterable[Words]) -> None:
        distinct = set(every)
        counts = Counter(word for words in distinct for word in words)
        self._usual = frozenset(word for word, count in counts.items() if count > _FEW)
        self._sets: dict[Words, Tally] = {words: Tally() for words in distinct}
        self._patterns: dict[tuple[Words, int], Tally] = {}
        self._rare_in: dict[str, list[Words]] = defaultdict(list)
        self._usual_in: dict[str, dict[tuple[Words, int], None]] = defaultdict(dict)
        for words in distinct:
            pattern = self._pattern(words)
            self._patterns.setdefault(pattern, Tally())
            for word in words - self._usual:
                self._rare_in[word].append(words)
            for word in pattern[0]:
                self._usual_in[word][pattern] = None

    def _pattern(self, words: Words) -> tuple[Words, int]:
        return words & self._usual, len(words)

    def add(self, words: Words, kind: Kind, number: int, count: int = 1) -> None:
        """Add a column to a set, or take it out with a `count` of -1."""
        self._sets[words].add(kind, number, count)
        self._patterns[self._pattern(words)].add(kind, number, count)

    def equal(self, words: Words, kinds: Collection[Kind]) -> tuple[int, int]:
        """Return the count of columns with these words, and the sum of their numbers."""
        return self._sets[words].of(kinds) if words in self._sets else (0, 0)

    def best(
        self, words: Words, telling: Words | None, kinds: Collection[Kind], shared: int = 0
    ) -> _Best:
        """Return the columns of other sets that are most alike.

        Args:
            words: The set to compare with.
            telling: The words of which another set must have one; None if any set will do.
            kinds: The kinds of columns that are considered.
            shared: How many words all have in common beside these.
        """
        best = _Best()
        near = {each for word in telling or words for each in self._rare_in.get(word, ())}
        compared: dict[tuple[Words, int], tuple[int, int]] = {}
        for each in near | ({words} & self._sets.keys()):
            count, total = self._sets[each].of(kinds)
            if each != words:
                likeness = _likeness(len(words & each), len(words), len(each), shared)
                best = best.or_better(likeness, count, total)
            before = compared.get(self._pattern(each), (0, 0))
            compared[self._pattern(each)] = before[0] + count, before[1] + total
        patterns: Iterable[tuple[Words, int]] = self._patterns
        if telling is not None:
            patterns = {p: None for word in telling for p in self._usual_in.get(word, ())}
        for pattern in patterns:
            count, total = self._patterns[pattern].of(kinds)
            done = compared.get(pattern, (0, 0))
            likeness = _likeness(len(words & pattern[0]), len(words), pattern[1], shared)
            best = best.or_better(likeness, count - done[0], total - done[1])
        return best


def _likeness(common: int, one: int, other: int, shared: int) -> float:
    return (shared + common) / (shared + one + other - common)


class Likeness:
    """Open columns of one side by the words of their names.

    Two names are as alike as the part of their words that they share, and not at all if all shared
    words are generic. Numbers count as words between names with the same words if both sides have
    the same numbers for these.

    Args:
        columns: The columns.
        kinds: The kind of each.
        numbers_agree: Returns True if both sides have the same numbers for words.
    """

    def __init__(
        self,
        columns: Iterable[Column],
        kinds: Mapping[Column, Kind],
        numbers_agree: Callable[[Words], bool],
    ) -> None:
        self._columns = list(columns)
        self._kinds, self._numbers_agree = kinds, numbers_agree
        self._numbers = {column: number for number, column in enumerate(self._columns)}
        self._texts = _Sets(column.texts for column in self._columns)
        alike: dict[Words, list[Words]] = defaultdict(list)
        for column in self._columns:
            alike[column.texts].append(frozenset(column.numbers))
        self._numbers_of = {t: _Sets(n) for t, n in alike.items() if numbers_agree(t)}
        for column in self._columns:
            self._add(column)

    def _add(self, column: Column, count: int = 1) -> None:
        kind, number = self._kinds[column], self._numbers[column]
        self._texts.add(column.texts, kind, number, count)
        if column.texts in self._numbers_of:
            of_texts = self._numbers_of[column.texts]
            of_texts.add(frozenset(column.numbers), kind, number, count)

    def remove(self, column: Column) -> None:
        """Take out a column that has a partner now."""
        self._add(column, -1)

    def most_alike(self, column: Column, kinds: Collection[Kind]) -> Column | None:
        """Return the only column of some kinds that is most alike to one of the other side."""
        telling = column.texts - _GENERIC
        if not kinds or not telling:
            return None
        others = self._numbers_of.get(column.texts)
        if others is None:
            count, total = self._texts.equal(column.texts, kinds)
        else:
            count, total = others.equal(frozenset(column.numbers), kinds)
        if not count:
            best = self._texts.best(column.texts, telling, kinds)
            if others is not None:
                shared, numbers = len(column.texts), frozenset(column.numbers)
                best = best.or_better(*others.best(numbers, None, kinds, shared))
            _, count, total = best
        return self._columns[total] if count == 1 else None
