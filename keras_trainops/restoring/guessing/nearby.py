"""Find the open columns that are closest to others in the model."""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from keras_trainops.restoring.guessing.columns import Column, Kind

_Entry: TypeAlias = tuple[int, int, Column]  # position in the model, number among the open columns


class Nearby:
    """Open columns of the model by position.

    Args:
        ours: The columns.
        kinds: The kind of each column.
        beside: The positions of the counterparts of a parent's columns.
        anchors: More positions inside of a parent, near which vectors are used.
    """

    def __init__(
        self,
        ours: Iterable[Column],
        kinds: Mapping[Column, Kind],
        beside: Mapping[str, Sequence[int]],
        anchors: Mapping[str, Sequence[int]],
    ) -> None:
        self._open: dict[Kind, list[_Entry]] = defaultdict(list)
        for number, column in enumerate(ours):
            self._open[kinds[column]].append((column.position, number, column))
        for columns in self._open.values():
            columns.sort(key=lambda entry: entry[:2])
        self._beside, self._anchors = beside, anchors
        self._sorted: dict[tuple[str, bool], list[int]] = {}

    def nearest(self, parent: str, kind: Kind) -> tuple[Column, ...]:
        """Return the columns that fit and are closer than others to counterparts of siblings.

        Args:
            parent: What the columns of the checkpoint are in.
            kind: Their kind.
        """
        # A norm is where it is used; a matrix or a table may be anywhere.
        is_matrix = kind.first.rank > 1 and not kind.first.is_in_order
        if not parent or is_matrix:
            return ()
        positions = self._positions(parent, with_anchors=kind.first.rank == 1)
        fitting = [self._open[each] for each in kind.fitting if each in self._open]
        near: dict[float, list[tuple[int, Column]]] = defaultdict(list)
        for columns in fitting if positions else ():
            for at, number, column in _beside(columns, positions):
                near[_distance(positions, at)].append((number, column))
        closest = near[min(near)] if near else []
        return tuple(column for _, column in sorted(closest, key=lambda entry: entry[0]))

    def _positions(self, parent: str, *, with_anchors: bool) -> list[int]:
        if (parent, with_anchors) not in self._sorted:
            anchors = self._anchors.get(parent, ()) if with_anchors else ()
            positions = {*self._beside.get(parent, ()), *anchors}
            self._sorted[parent, with_anchors] = sorted(positions)
        return self._sorted[parent, with_anchors]


def _beside(columns: Sequence[_Entry], positions: Sequence[int]) -> Iterable[_Entry]:
    """Return the columns that may be closest to one of some positions, those beside it."""
    if len(columns) <= len(positions):
        return columns
    places = {bisect.bisect_right(columns, position, key=_position) for position in positions}
    places |= {place - 1 for place in places}
    return [columns[place] for place in places if 0 <= place < len(columns)]


def _position(entry: _Entry) -> int:
    return entry[0]


def _distance(positions: Sequence[int], at: int) -> float:
    """Return how far a layer is from the closest one; one that follows is closer than one before.

    Args:
        positions: The positions of the others, sorted.
        at: The position of the layer.
    """
    place = bisect.bisect_left(positions, at)
    before = at - positions[place - 1] if place else math.inf
    after = positions[place] - at + 0.5 if place < len(positions) else math.inf
    return min(before, after)
