"""The layers of one name in all blocks of a kind, and which of them fit each other."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from keras_trainops import numbering
from keras_trainops.layouts.words import words
from keras_trainops.restoring.guessing.families import Block
from keras_trainops.restoring.guessing.fitting import Fitting
from keras_trainops.restoring.guessing.units import Unit, natural_order

NAMES, SHAPES, ORDER = "names and shapes", "shapes: nothing else fits", "order; check"
Reason: TypeAlias = str
_NOISE = frozenset({"layer", "block", "module", "model"})


@dataclass(eq=False)
class Column:
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

    @functools.cached_property
    def words(self) -> frozenset[str]:
        """The words of the name, and its numbers."""
        return frozenset(words(self.inner).split()) - _NOISE

    @functools.cached_property
    def numbers(self) -> tuple[str, ...]:
        """The numbers among the words."""
        return tuple(sorted(word for word in self.words if word.isdigit()))

    @functools.cached_property
    def texts(self) -> frozenset[str]:
        """The words without the numbers."""
        return frozenset(word for word in self.words if not word.isdigit())

    @functools.cached_property
    def parent(self) -> str:
        """The name of what the layer is in; empty if it says nothing about that."""
        return re.split(r"[./][^./]*$", self.inner)[0] if re.search("[./]", self.inner) else ""

    @functools.cached_property
    def ends(self) -> list[str]:
        """The ends of the name by whole components, the whole name first."""
        name = f"/{self.inner.replace('.', '/')}"
        return [name[place:] for place, letter in enumerate(name) if letter == "/"]

    @property
    def position(self) -> int:
        """The position among all layers, in the first block."""
        return self.units[0].position

    @property
    def rank(self) -> int:
        """The largest number of axes of its tensors."""
        return self.units[0].rank

    @property
    def is_in_order(self) -> bool:
        """True for layers that networks call in the order of their names or numbers."""
        unit = self.units[0]
        return unit.is_batch_norm or unit.rank > 2 or bool(unit.of("recurrent"))


@dataclass(eq=False)
class Kind:
    """Columns that fit the same columns of the other side.

    Attributes:
        first: The first of them.
        count: How many they are, paired or not.
        fitting: The kinds of the other side that fit.
        fitting_wholly: Those of them for which no tensor of the model is missing.
        alike: The kinds whose shapes fit, whatever their roles are.
    """

    first: Column
    count: int = 0
    fitting: dict[Kind, None] = field(default_factory=dict)
    fitting_wholly: dict[Kind, None] = field(default_factory=dict)
    alike: dict[Kind, None] = field(default_factory=dict)


def kinds_of(
    theirs: Iterable[Column], ours: Iterable[Column], fitting: Fitting
) -> dict[Column, Kind]:
    """Return the kind of each column. Kinds, not columns, are compared with each other.

    Args:
        theirs: The columns of the checkpoint.
        ours: The columns of the model.
        fitting: Compares layers.
    """
    kind_of: dict[Column, Kind] = {}
    their_kinds = _grouped(theirs, fitting.their_form, kind_of)
    by_measure: dict[object, dict[object, list[Kind]]] = {}
    for kind in _grouped(ours, fitting.our_form, kind_of):
        unit = kind.first.units[0]
        by_measure.setdefault(unit.measure, {}).setdefault(unit.block, []).append(kind)
    for one in their_kinds:
        unit = one.first.units[0]
        by_block = by_measure.get(unit.measure, {})
        blocks = by_block if unit.block is None else (unit.block, None)
        for other in (kind for block in blocks for kind in by_block.get(block, ())):
            _compare(one, other, fitting)
    return kind_of


def _grouped(
    columns: Iterable[Column], form: Callable[[Unit], int], kind_of: dict[Column, Kind]
) -> Iterable[Kind]:
    kinds: dict[object, Kind] = {}
    for column in columns:
        shapes = tuple((form(unit), unit.block) for unit in column.units)
        key = (column.role, column.is_numbered, shapes)
        kind_of[column] = kinds.setdefault(key, Kind(column))
        kind_of[column].count += 1
    return kinds.values()


def _compare(one: Kind, other: Kind, fitting: Fitting) -> None:
    """Record in both kinds whether they fit."""
    if not _shapes_fit(one.first, other.first, fitting):
        return
    one.alike[other] = other.alike[one] = None
    if not _may_fit(one.first, other.first):
        return
    one.fitting[other] = other.fitting[one] = None
    if all(map(fitting.fits_wholly, one.first.units, other.first.units)):
        one.fitting_wholly[other] = other.fitting_wholly[one] = None


def _shapes_fit(one: Column, other: Column, fitting: Fitting) -> bool:
    """Return True if all layers of two columns fit, and are in the same aligned blocks."""
    return all(
        a.block in (None, b.block) or b.block is None
        for a, b in zip(one.units, other.units, strict=True)
    ) and all(map(fitting.fits, one.units, other.units))


def _may_fit(one: Column, other: Column) -> bool:
    if one.role and other.role and one.role != other.role:
        return False
    # A layer in a numbered block does not match a layer outside of blocks.
    return one.is_numbered == other.is_numbered or other.is_in_order


def by_name(column: Column) -> list[tuple[str, int]]:
    """Return a sort key that compares numbers in names by value."""
    return natural_order(column.inner)


def differ_in_numbers(columns: Iterable[Column]) -> bool:
    """Return True if names differ only in numbers."""
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
