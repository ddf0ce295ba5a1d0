"""Open columns by what their names have in common, to find the only one that fits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping

from keras_trainops.restoring.guessing.columns import Column, Kind


class Tally:
    """How many columns there are of each kind, and which one if there is one.

    The numbers of the columns are added up, so a sum over one column is its number.
    """

    def __init__(self) -> None:
        self._counts: dict[Kind, tuple[int, int]] = {}

    def add(self, kind: Kind, number: int, count: int = 1) -> None:
        """Add a column, or take it out with a `count` of -1."""
        before = self._counts.get(kind, (0, 0))
        after = before[0] + count, before[1] + count * number
        if after[0]:
            self._counts[kind] = after
        else:
            del self._counts[kind]

    def of(self, kinds: Collection[Kind]) -> tuple[int, int]:
        """Return the count of columns of some kinds, and the sum of their numbers."""
        if len(kinds) > len(self._counts):
            found = [entry for kind, entry in self._counts.items() if kind in kinds]
        else:
            found = [self._counts[kind] for kind in kinds if kind in self._counts]
        return sum(count for count, _ in found), sum(total for _, total in found)


class Candidates:
    """Open columns of one side by labels.

    Args:
        columns: The columns.
        kinds: The kind of each.
        labels: Returns the labels of a column.
    """

    def __init__(
        self,
        columns: Iterable[Column],
        kinds: Mapping[Column, Kind],
        labels: Callable[[Column], Iterable[Hashable]],
    ) -> None:
        self._columns = list(columns)
        self._kinds, self._labels = kinds, labels
        self._numbers = {column: number for number, column in enumerate(self._columns)}
        self._tallies: dict[Hashable, Tally] = {}
        for column, number in self._numbers.items():
            for label in labels(column):
                self._tallies.setdefault(label, Tally()).add(kinds[column], number)

    def remove(self, column: Column) -> None:
        """Take out a column that has a partner now."""
        for label in self._labels(column):
            self._tallies[label].add(self._kinds[column], self._numbers[column], -1)

    def only(self, labels: Iterable[Hashable], kinds: Collection[Kind]) -> Column | None:
        """Return the only column of some kinds with one of the labels; None if there are others."""
        found: set[int] = set()
        for label in labels:
            count, number = self._tallies[label].of(kinds) if label in self._tallies else (0, 0)
            if count > 1:
                return None
            if count:
                found.add(number)
        return self._columns[found.pop()] if len(found) == 1 else None
