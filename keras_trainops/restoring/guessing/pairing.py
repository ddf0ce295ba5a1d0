"""Pair the layers of aligned blocks: once for all blocks of a kind."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from keras_trainops.restoring.guessing.candidates import Candidates
from keras_trainops.restoring.guessing.columns import (
    NAMES,
    ORDER,
    SHAPES,
    Column,
    Kind,
    Reason,
    by_name,
    differ_in_numbers,
    kinds_of,
)
from keras_trainops.restoring.guessing.fitting import Fitting
from keras_trainops.restoring.guessing.likeness import Likeness
from keras_trainops.restoring.guessing.nearby import Nearby

Labels: TypeAlias = Callable[[Column], Collection[Hashable]]


class Pairing:
    """The columns of aligned blocks, and which of them belong together.

    Columns are not compared with each other: those of a kind fit the same columns, and labels tell
    what names have in common. So a pass over the columns takes time in proportion to their number.
    Only names that are made of many combinations of a few words take longer. `by_shapes` repeats
    its passes as long as they find pairs.

    Args:
        theirs: The columns of the checkpoint.
        ours: The columns of the model.
        fitting: Compares layers.
        is_ordered: If True, the checkpoint keeps the order in which layers were created.
        is_outside: If True, the columns are layers outside of blocks. In a block of a transformer
            the order of creation means nothing.
        anchors: Layers of the checkpoint that are paired already, outside of these columns: the
            name of each, and the position of its counterpart.

    Attributes:
        theirs: The columns of the checkpoint without a partner, in their order.
        ours: The columns of the model without a partner, in their order.
        found: The pairs, with the reason for each.
    """

    def __init__(
        self,
        theirs: Sequence[Column],
        ours: Sequence[Column],
        fitting: Fitting,
        is_ordered: bool,
        is_outside: bool = False,
        anchors: Iterable[tuple[str, int]] = (),
    ) -> None:
        self.theirs, self.ours = dict.fromkeys(theirs), dict.fromkeys(ours)
        self.fitting = fitting
        self.found: list[tuple[Column, Column, Reason]] = []
        self._every = theirs, ours
        self._is_ordered, self._is_outside = is_ordered, is_outside
        self._kinds = kinds_of(theirs, ours, fitting)
        self._anchors: dict[str, list[int]] = defaultdict(list)
        for name, position in anchors:
            for place, letter in enumerate(name):
                if letter in "./":
                    self._anchors[name[:place]].append(position)
        self._numbers = [_numbers_by_texts(columns) for columns in self._every]

    def by_names(self, carried: Mapping[str, str]) -> None:
        """Pair columns by role and name.

        Args:
            carried: Names of columns that belong together in blocks of another kind.
        """
        ours = {column.name: column for column in self.ours}
        for one in list(self.theirs):
            other = ours.get(carried.get(one.name, ""))
            if other is not None and other in self.ours and self._fits(one, other):
                self.accept(one, other, NAMES)
        self._pair_by(lambda c: [(c.side, c.role)] if c.side and c.role else [])
        self._pair_by(lambda c: [c.role] if c.role else [])
        self._pair_by(lambda c: [c.words] if c.words and self._numbers_agree(c.texts) else [])
        self._pair_by_end()
        if self._only_numbers_tell():
            self._pair_by(lambda c: [c.numbers] if c.numbers else [])

    def _only_numbers_tell(self) -> bool:
        """Return True if both sides number columns alike, as `1`, `2` and `conv1`, `conv2`."""
        theirs, ours = ([c.numbers for c in columns] for columns in self._every)
        texts = [{c.texts for c in columns} for columns in self._every]
        is_one_kind = all(len(each) == 1 for each in texts) and frozenset() in texts[0]
        return is_one_kind and sorted(theirs) == sorted(ours)

    def _numbers_agree(self, texts: frozenset[str]) -> bool:
        """Return True if the columns of these words have the same numbers on both sides.

        `norm1`, `norm2`, `norm3` are not `preact_bn`, `1_bn`, `2_bn` with the same numbers.
        """
        theirs, ours = self._numbers
        return theirs.get(texts) == ours.get(texts)

    def _pair_by(self, labels: Labels) -> None:
        """Pair columns with a common label, if only one fits on either side."""
        for pair in self._only_pairs(labels, labels, self.ours):
            self.accept(*pair, NAMES)

    def _pair_by_end(self) -> None:
        """Pair columns of which one's name is the end of the other's, by whole components."""
        ours = [c for c in self.ours if not c.numbers or self._numbers_agree(c.texts)]
        for pair in self._only_pairs(_ends_of_theirs, _ends_of_ours, ours):
            self.accept(*pair, NAMES)

    def _only_pairs(
        self,
        their_labels: Labels,
        our_labels: Labels,
        ours: Iterable[Column],
        fitting: Callable[[Kind], Collection[Kind]] = lambda kind: kind.fitting,
    ) -> Iterator[tuple[Column, Column]]:
        """Yield columns with a common label of which only one fits on either side.

        Args:
            their_labels: Returns the labels of a column of the checkpoint.
            our_labels: Returns those of a column of the model.
            ours: The columns of the model that are to be paired.
            fitting: Returns the kinds that fit a kind.
        """
        theirs = Candidates(self.theirs, self._kinds, their_labels)
        rivals = Candidates(self.ours, self._kinds, our_labels)
        for other in list(ours):
            one = theirs.only(our_labels(other), fitting(self._kinds[other]))
            if one is None:
                continue
            if rivals.only(their_labels(one), fitting(self._kinds[one])) is other:
                theirs.remove(one)
                rivals.remove(other)
                yield one, other

    def by_shapes(self) -> None:
        """Pair what is left: by shape, by the layers beside it, by likeness, then by order."""
        count = -1
        while count != len(self.found):
            count = len(self.found)
            self._pair_by_shape(lambda kind: kind.fitting_wholly)
            self._pair_by_shape(lambda kind: kind.fitting)
            self._pair_beside()
            self._pair_by_likeness()
            self._pair_by_nearness()
        self._pair_by_order()

    def _pair_by_shape(self, fitting: Callable[[Kind], Collection[Kind]]) -> None:
        """Pair columns that fit no other open column.

        Args:
            fitting: Returns the kinds that fit a kind.
        """
        for one, other in self._only_pairs(_no_label, _no_label, self.ours, fitting):
            reason = NAMES if one.words & other.words else SHAPES
            self.accept(one, other, reason if self._have_no_siblings(one, other) else ORDER)

    def _have_no_siblings(self, one: Column, other: Column) -> bool:
        """Return True if no other column, paired or not, has a shape that fits either of two."""
        return all(sum(kind.count for kind in self._kinds[c].alike) == 1 for c in (one, other))

    def _pair_beside(self) -> None:
        """Pair columns whose siblings belong together, if only one fits there."""
        beside = {a.parent: b.parent for a, b, _ in self.found if a.parent and b.parent}
        theirs, ours = (
            Candidates(columns, self._kinds, lambda column: [column.parent])
            for columns in (self.theirs, self.ours)
        )
        for one in [c for c in self.theirs if c.parent in beside]:
            other = ours.only([beside[one.parent]], self._kinds[one].fitting)
            if other is None:
                continue
            if theirs.only([one.parent], self._kinds[other].fitting) is one:
                theirs.remove(one)
                ours.remove(other)
                self.accept(one, other, ORDER)

    def _pair_by_likeness(self) -> None:
        """Pair columns whose names are more alike than all others that fit."""
        theirs, ours = (
            Likeness(columns, self._kinds, self._numbers_agree)
            for columns in (self.theirs, self.ours)
        )
        for one in list(self.theirs):
            other = ours.most_alike(one, self._kinds[one].fitting)
            if other is None:
                continue
            if theirs.most_alike(other, self._kinds[other].fitting) is one:
                theirs.remove(one)
                ours.remove(other)
                self.accept(one, other, ORDER)

    def _pair_by_nearness(self) -> None:
        """Pair columns with those closest in the model to the counterparts of their siblings."""
        siblings: dict[tuple[str, Kind], list[Column]] = {}
        for one in self.theirs:
            siblings.setdefault((one.parent, self._kinds[one]), []).append(one)
        nearby = Nearby(self.ours, self._kinds, self._positions(), self._anchors)
        wishes: dict[tuple[Column, ...], list[Column]] = {}
        for (parent, kind), columns in siblings.items():
            wishes.setdefault(nearby.nearest(parent, kind), []).extend(columns)
        counts = Counter(column for wanted in wishes for column in wanted)
        order = {column: place for place, column in enumerate(self.theirs)}
        for ours, columns in wishes.items():
            is_clear = len(columns) == 1 or differ_in_numbers(columns)
            if len(ours) == len(columns) and is_clear and all(counts[c] == 1 for c in ours):
                theirs = sorted(sorted(columns, key=order.__getitem__), key=by_name)
                for one, other in zip(theirs, _in_order(ours), strict=True):
                    self.accept(one, other, ORDER)

    def _positions(self) -> dict[str, list[int]]:
        """Return the positions of the counterparts of columns, by what the columns are in."""
        found: dict[str, list[int]] = defaultdict(list)
        for one, other, _ in self.found:
            found[one.parent].append(other.position)
        return found

    def _fits(self, one: Column, other: Column) -> bool:
        return self._kinds[other] in self._kinds[one].fitting

    def accept(self, one: Column, other: Column, reason: Reason) -> None:
        """Pair two columns."""
        self.found.append((one, other, reason))
        self.take([one], [other])

    def take(self, theirs: Iterable[Column], ours: Iterable[Column]) -> None:
        """Take out columns that have a partner."""
        for one in theirs:
            del self.theirs[one]
        for other in ours:
            del self.ours[other]

    def _pair_by_order(self) -> None:
        """Pair equally many columns of one shape in their order, if the order means something."""
        for theirs, ours in self.groups():
            theirs, ours = _of_common_roles(theirs, ours)
            if len(theirs) != len(ours) or len(theirs) < 2:
                continue
            if any(c.is_numbered and not c.is_in_order for c in (*theirs, *ours)):
                continue  # a pair might cross blocks
            if differ_in_numbers(theirs):
                in_order = sorted(theirs, key=by_name)
            elif self._is_ordered and (self._is_outside or all(c.is_in_order for c in theirs)):
                in_order = sorted(theirs, key=lambda column: column.position)
            else:
                continue
            pairs = list(zip(in_order, _in_order(ours), strict=True))
            if all(self._fits(*pair) for pair in pairs):
                for pair in pairs:
                    self.accept(*pair, ORDER)

    def groups(self) -> list[tuple[list[Column], list[Column]]]:
        """Return the columns that fit each other, directly or through other columns."""
        is_open = {self._kinds[column] for column in (*self.theirs, *self.ours)}
        group_of: dict[Kind, tuple[list[Column], list[Column]]] = {}
        groups: list[tuple[list[Column], list[Column]]] = []
        for kind in [self._kinds[column] for column in self.theirs]:
            if kind in group_of:
                continue
            groups.append(([], []))
            reached = [kind]
            while reached:
                kind = reached.pop()
                if kind not in group_of:
                    group_of[kind] = groups[-1]
                    reached += [other for other in kind.fitting if other in is_open]
        for side, columns in enumerate((self.theirs, self.ours)):
            for column in columns:
                if self._kinds[column] in group_of:
                    group_of[self._kinds[column]][side].append(column)
        return groups


def _numbers_by_texts(columns: Iterable[Column]) -> dict[frozenset[str], set[tuple[str, ...]]]:
    found: dict[frozenset[str], set[tuple[str, ...]]] = defaultdict(set)
    for column in columns:
        found[column.texts].add(column.numbers)
    return found


def _no_label(column: Column) -> list[Hashable]:
    """Return one label for all columns."""
    return [None]


def _ends_of_theirs(column: Column) -> list[Hashable]:
    """Return the ends of a name that may be whole names of the other side, and its whole name."""
    return [("theirs", column.ends[0]), *(("ours", end) for end in column.ends)]


def _ends_of_ours(column: Column) -> list[Hashable]:
    return [("ours", column.ends[0]), *(("theirs", end) for end in column.ends)]


def _of_common_roles(theirs: list[Column], ours: list[Column]) -> tuple[list[Column], list[Column]]:
    """Return columns of different counts without those whose role the other side does not have."""
    if len(theirs) == len(ours):
        return theirs, ours
    roles = {c.role for c in ours}, {c.role for c in theirs}
    return (
        [c for c in theirs if not c.role or c.role in roles[0]],
        [c for c in ours if not c.role or c.role in roles[1]],
    )


def _in_order(columns: Sequence[Column]) -> list[Column]:
    """Return columns of the model in the order of their numbers, or of their creation."""
    if differ_in_numbers(columns):
        return sorted(columns, key=by_name)
    return sorted(columns, key=lambda column: column.position)
