"""Pair the layers of aligned blocks: once for all blocks of a kind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from keras_trainops import numbering
from keras_trainops.layouts.words import words
from keras_trainops.restoring.guessing.families import Block
from keras_trainops.restoring.guessing.fitting import Fitting
from keras_trainops.restoring.guessing.units import Unit, natural_order

NAMES, SHAPES, ORDER = "names and shapes", "shapes: nothing else fits", "order; check"
Reason: TypeAlias = str


class Column(NamedTuple):
    """The layers of one name in all blocks of a kind.

    Attributes:
        name: The name in the block.
        role: The role; "" if it is unknown.
        units: The layer in each block.
        inner: The name in the block, without numbers that differ from block to block.
        side: The side of the network, if it has several.
        is_numbered: If True, the layer is in a numbered block that has no counterpart.
    """

    name: str
    role: str
    units: tuple[Unit, ...]
    inner: str
    side: str = ""
    is_numbered: bool = False

    @property
    def words(self) -> frozenset[str]:
        """The words of the name, and its numbers."""
        return frozenset(words(self.inner).split()) - _NOISE

    @property
    def numbers(self) -> tuple[str, ...]:
        """The numbers among the words."""
        return tuple(sorted(word for word in self.words if word.isdigit()))

    @property
    def texts(self) -> frozenset[str]:
        """The words without the numbers."""
        return frozenset(word for word in self.words if not word.isdigit())


_GENERIC = frozenset({"conv", "norm", "dense", "proj", "output"})
_NOISE = frozenset({"layer", "block", "module", "model"})


@dataclass
class Pairing:
    """The columns of aligned blocks, and which of them belong together.

    Attributes:
        theirs: The columns of the checkpoint without a partner.
        ours: The columns of the model without a partner.
        fitting: Compares layers.
        is_ordered: If True, the checkpoint keeps the order in which layers were created.
        is_outside: If True, the columns are layers outside of blocks. In a block of a transformer
            the order of creation means nothing.
        anchors: Layers of the checkpoint that are paired already, outside of these columns: the
            name of each, and the position of its counterpart.
        found: The pairs, with the reason for each.
    """

    theirs: list[Column]
    ours: list[Column]
    fitting: Fitting
    is_ordered: bool
    is_outside: bool = False
    anchors: Sequence[tuple[str, int]] = ()
    found: list[tuple[Column, Column, Reason]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._every = (list(self.theirs), list(self.ours))

    def by_names(self, carried: Mapping[str, str]) -> None:
        """Pair columns by role and name.

        Args:
            carried: Names of columns that belong together in blocks of another kind.
        """
        ours = {column.name: column for column in self.ours}
        for one in list(self.theirs):
            other = ours.get(carried.get(one.name, ""))
            if other is not None and self.fits(one, other):
                self.accept(one, other, NAMES)
        self._pair_by(lambda column: column.side and column.role and (column.side, column.role))
        self._pair_by(lambda column: column.role)
        self._pair_by(self._distinct_words)
        self._pair_by_end()
        if self._only_numbers_tell():
            self._pair_by(lambda column: column.numbers)

    def _only_numbers_tell(self) -> bool:
        """Return True if both sides number columns alike, as `1`, `2` and `conv1`, `conv2`."""
        theirs, ours = ([c.numbers for c in columns] for columns in self._every)
        texts = [{c.texts for c in columns} for columns in self._every]
        is_one_kind = all(len(each) == 1 for each in texts) and frozenset() in texts[0]
        return is_one_kind and sorted(theirs) == sorted(ours)

    def _pair_by_end(self) -> None:
        """Pair columns of which one's name is the end of the other's, by whole components."""
        for other in list(self.ours):
            if other.numbers and not self._numbers_agree(other):
                continue
            candidates = [c for c in self.theirs if _ends(c, other) and self.fits(c, other)]
            rivals = [c for c in self.ours if candidates and _ends(candidates[0], c)]
            if len(candidates) == 1 and self._only(candidates[0], rivals, other):
                self.accept(candidates[0], other, NAMES)

    def _distinct_words(self, column: Column) -> object:
        """Return the words of a column, or nothing if both sides number such columns otherwise.

        `norm1`, `norm2`, `norm3` are not `preact_bn`, `1_bn`, `2_bn` with the same numbers.
        """
        return column.words if self._numbers_agree(column) else None

    def _numbers_agree(self, column: Column) -> bool:
        """Return True if the columns of these words have the same numbers on both sides."""
        theirs, ours = (
            {c.numbers for c in columns if c.texts == column.texts} for columns in self._every
        )
        return theirs == ours

    def _likeness(self, one: Column, other: Column) -> float:
        """Return the fraction of words that two names share; 0 if all shared words are generic."""
        if not one.texts & other.texts - _GENERIC:
            return 0.0
        are_numbered_alike = one.texts == other.texts and self._numbers_agree(one)
        a, b = (c.words if are_numbered_alike else c.texts for c in (one, other))
        return len(a & b) / len(a | b)

    def by_shapes(self) -> None:
        """Pair what is left: by shape, by the layers beside it, by likeness, then by order."""
        count = -1
        while count != len(self.found):
            count = len(self.found)
            self._pair_by_shape(self.fits_wholly)
            self._pair_by_shape(self.fits)
            self._pair_beside()
            self._pair_by_likeness()
            self._pair_by_nearness()
        self._pair_by_order()

    def _have_no_siblings(self, one: Column, other: Column) -> bool:
        """Return True if no other column, paired or not, has a shape that fits either of two."""
        theirs, ours = self._every
        return [c for c in theirs if self._shapes_fit(c, other)] == [one] and [
            c for c in ours if self._shapes_fit(one, c)
        ] == [other]

    def _pair_beside(self) -> None:
        """Pair columns whose siblings belong together, if only one fits there."""
        beside = {
            _parent(one.inner): _parent(other.inner)
            for one, other, _ in self.found
            if _parent(one.inner) and _parent(other.inner)
        }
        for one in list(self.theirs):
            parent = beside.get(_parent(one.inner))
            there = [c for c in self.ours if _parent(c.inner) == parent and self.fits(one, c)]
            rivals = [
                c
                for c in self.theirs
                if _parent(c.inner) == _parent(one.inner) and there and self.fits(c, there[0])
            ]
            if parent and len(there) == 1 and rivals == [one]:
                self.accept(one, there[0], ORDER)

    def _pair_by_nearness(self) -> None:
        """Pair columns with those closest in the model to the counterparts of their siblings."""
        wishes: dict[tuple[str, ...], list[Column]] = {}
        for one in self.theirs:
            nearest = tuple(column.name for column in self._nearest(one))
            wishes.setdefault(nearest, []).append(one)
        counts = Counter(name for names in wishes for name in names)
        for names, theirs in wishes.items():
            is_clear = len(theirs) == 1 or _differ_in_numbers(theirs)
            if len(names) == len(theirs) and is_clear and all(counts[n] == 1 for n in names):
                ours = [column for column in self.ours if column.name in names]
                for one, other in zip(sorted(theirs, key=_by_name), _in_order(ours), strict=True):
                    self.accept(one, other, ORDER)

    def _nearest(self, one: Column) -> list[Column]:
        """Return the columns that fit and are closer than others to counterparts of siblings."""
        parent = _parent(one.inner)
        beside = [b.units[0].position for a, b, _ in self.found if _parent(a.inner) == parent]
        if one.units[0].rank == 1:
            inside = (f"{parent}.", f"{parent}/")
            beside += [at for owner, at in self.anchors if owner.startswith(inside)]
        # A norm is where it is used; a matrix or a table may be anywhere.
        is_matrix = one.units[0].rank > 1 and not _is_in_order(one)
        if not parent or not beside or is_matrix:
            return []
        found = [
            (min(_distance(position, c.units[0].position) for position in beside), c)
            for c in self.ours
            if self.fits(one, c)
        ]
        closest = min((distance for distance, _ in found), default=0.0)
        return [column for distance, column in found if distance == closest]

    def _pair_by_likeness(self) -> None:
        """Pair columns whose names are more alike than all others that fit."""
        for one in list(self.theirs):
            ranked = self._ranked(one, self.ours, self.fits)
            if not ranked:
                continue
            other = ranked[0]
            back = self._ranked(other, self.theirs, lambda c, o: self.fits(o, c))
            if back and back[0] is one:
                self.accept(one, other, ORDER)

    def _ranked(
        self, column: Column, others: Iterable[Column], fits: Callable[[Column, Column], bool]
    ) -> list[Column]:
        """Return the only column that is most alike and fits, or nothing."""
        found = [(self._likeness(column, other), other) for other in others if fits(column, other)]
        found.sort(key=lambda pair: pair[0], reverse=True)
        if not found or not found[0][0] or (len(found) > 1 and found[0][0] == found[1][0]):
            return []
        return [found[0][1]]

    def fits(self, one: Column, other: Column) -> bool:
        """Return True if all layers of two columns fit, and their roles do not differ."""
        if one.role and other.role and one.role != other.role:
            return False
        if one.is_numbered != other.is_numbered and not _is_in_order(other):
            return False  # a layer of a block is no layer outside of blocks
        return self._shapes_fit(one, other)

    def fits_wholly(self, one: Column, other: Column) -> bool:
        """Return True if two columns fit, and no tensor of the model's is missing."""
        return self.fits(one, other) and all(map(self.fitting.fits_wholly, one.units, other.units))

    def _shapes_fit(self, one: Column, other: Column) -> bool:
        return all(
            a.block in (None, b.block) or b.block is None
            for a, b in zip(one.units, other.units, strict=True)
        ) and all(map(self.fitting.fits, one.units, other.units))

    def accept(self, one: Column, other: Column, reason: Reason) -> None:
        """Pair two columns."""
        self.found.append((one, other, reason))
        self.theirs.remove(one)
        self.ours.remove(other)

    def _pair_by(self, key: Callable[[Column], object]) -> None:
        """Pair columns of equal keys, if only one fits on either side."""
        for other in list(self.ours):
            if not key(other):
                continue
            candidates = [c for c in self.theirs if key(c) == key(other) and self.fits(c, other)]
            rivals = [c for c in self.ours if key(c) == key(other)]
            if len(candidates) == 1 and self._only(candidates[0], rivals, other):
                self.accept(candidates[0], other, NAMES)

    def _only(self, one: Column, rivals: Iterable[Column], other: Column) -> bool:
        return [rival for rival in rivals if self.fits(one, rival)] == [other]

    def _pair_by_shape(self, fits: Callable[[Column, Column], bool]) -> None:
        """Pair columns that fit no other open column.

        Args:
            fits: Returns True if a column of the checkpoint fits one of the model.
        """
        for other in list(self.ours):
            candidates = [c for c in self.theirs if fits(c, other)]
            if len(candidates) != 1:
                continue
            one = candidates[0]
            if [c for c in self.ours if fits(one, c)] != [other]:
                continue
            alike = one.words & other.words
            reason = (NAMES if alike else SHAPES) if self._have_no_siblings(one, other) else ORDER
            self.accept(one, other, reason)

    def _pair_by_order(self) -> None:
        """Pair equally many columns of one shape in their order, if the order means something."""
        for theirs, ours in self.groups():
            theirs, ours = _of_common_roles(theirs, ours)
            if len(theirs) != len(ours) or len(theirs) < 2:
                continue
            if any(c.is_numbered and not _is_in_order(c) for c in (*theirs, *ours)):
                continue  # a pair might cross blocks
            if _differ_in_numbers(theirs):
                in_order = sorted(theirs, key=_by_name)
            elif self.is_ordered and (self.is_outside or all(map(_is_in_order, theirs))):
                in_order = sorted(theirs, key=lambda column: column.units[0].position)
            else:
                continue
            pairs = list(zip(in_order, _in_order(ours), strict=True))
            if all(self.fits(*pair) for pair in pairs):
                for pair in pairs:
                    self.accept(*pair, ORDER)

    def groups(self) -> list[tuple[list[Column], list[Column]]]:
        """Return the columns that fit each other, directly or through other columns."""
        groups = []
        left = list(self.theirs)
        while left:
            theirs, ours = [left.pop(0)], list[Column]()
            grown = True
            while grown:
                ours_now = [c for c in self.ours if any(self.fits(t, c) for t in theirs)]
                theirs_now = [c for c in self.theirs if any(self.fits(c, o) for o in ours_now)]
                grown = len(theirs_now) > len(theirs) or len(ours_now) > len(ours)
                ours, theirs = ours_now, theirs_now or theirs
            left = [c for c in left if c not in theirs]
            groups.append((theirs, ours))
        return groups


def _is_in_order(column: Column) -> bool:
    """Return True for layers that networks call in the order of their names or numbers."""
    unit = column.units[0]
    return unit.is_batch_norm or unit.rank > 2 or bool(unit.of("recurrent"))


def _distance(position: int, other: int) -> float:
    """Return how far a layer is from another; one that follows is closer than one before."""
    return other - position if other > position else position - other + 0.5


def _of_common_roles(theirs: list[Column], ours: list[Column]) -> tuple[list[Column], list[Column]]:
    """Return columns of different counts without those whose role the other side does not have."""
    if len(theirs) == len(ours):
        return theirs, ours
    roles = {c.role for c in ours}, {c.role for c in theirs}
    return (
        [c for c in theirs if not c.role or c.role in roles[0]],
        [c for c in ours if not c.role or c.role in roles[1]],
    )


def _ends(one: Column, other: Column) -> bool:
    """Return True if one name ends in the other, as `net/head` ends in `head`."""
    a, b = (f"/{column.inner.replace('.', '/')}" for column in (one, other))
    return a.endswith(b) or b.endswith(a)


def _parent(name: str) -> str:
    return re.split(r"[./][^./]*$", name)[0] if re.search("[./]", name) else ""


def _by_name(column: Column) -> list[tuple[str, int]]:
    return natural_order(column.inner)


def _in_order(columns: Sequence[Column]) -> list[Column]:
    """Return columns of the model in the order of their numbers, or of their creation."""
    if _differ_in_numbers(columns):
        return sorted(columns, key=_by_name)
    return sorted(columns, key=lambda column: column.units[0].position)


def _differ_in_numbers(columns: Sequence[Column]) -> bool:
    return len(numbering.by_family([column.inner for column in columns])) == 1


def columns_of(blocks: Sequence[Block]) -> list[Column]:
    """Return the columns of blocks with the same members."""
    first = blocks[0]
    return [
        Column(
            name,
            first.roles[name],
            tuple(block.units[name] for block in blocks),
            _common([block.inner[name] for block in blocks]),
        )
        for name in first.units
    ]


def _common(names: Sequence[str]) -> str:
    """Return the name of a layer without the numbers that differ from block to block.

    Example:
        >>> _common(["conv3_2", "conv4_2"])
        'conv_2'
    """
    if len(numbering.by_family(names)) > 1:
        return names[0]
    texts, _ = numbering.split(names[0])
    columns = zip(*(numbering.split(name)[1] for name in names), strict=True)
    common = [column[0] if len(set(column)) == 1 else "" for column in columns]
    return texts[0] + "".join(n + text for n, text in zip(common, texts[1:], strict=True))
