"""Align the blocks of a checkpoint with those of a model, before any layer is paired.

A block of one side belongs to one block of the other, and the order of the blocks is the same on
both sides. No layer of an aligned block can be paired outside its block.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from keras_trainops import numbering
from keras_trainops.layouts.roles import side_of
from keras_trainops.layouts.words import words
from keras_trainops.restoring.guessing.families import Block, Family, families_of
from keras_trainops.restoring.guessing.fitting import Fitting
from keras_trainops.restoring.guessing.units import Unit

_COVERED = 0.5  # the part of the layers of a block that need a counterpart, at least
_FUSED = {"query": "qkv", "key": "qkv", "value": "qkv", "gate": "gate_up", "up": "gate_up"}


class Alignment(NamedTuple):
    """Blocks of a checkpoint and of a model, pair by pair.

    Attributes:
        theirs: The blocks of the checkpoint.
        ours: The blocks of the model.
        blocks: The pairs of blocks.
    """

    theirs: Family
    ours: Family
    blocks: list[tuple[Block, Block]]


class _Candidate(NamedTuple):
    score: tuple[float, ...]
    alignment: Alignment

    @property
    def wishes(self) -> list[tuple[tuple[float, ...], Family]]:
        """The families, with the score; other blocks for one of them with this score are rivals."""
        return [(self.score, self.alignment.theirs), (self.score, self.alignment.ours)]


def next_alignment(
    theirs: Sequence[Unit],
    ours: Sequence[Unit],
    fitting: Fitting,
    done: Collection[tuple[str, str]],
) -> Alignment | None:
    """Return the alignment of the most, and so of the smallest, blocks; None if there is none.

    Args:
        theirs: The layers of the checkpoint that have no counterpart yet.
        ours: The layers of the model that have none.
        fitting: Compares layers.
        done: The prefixes of families that are aligned already.
    """
    pairs = [
        (one, other)
        for one, other in itertools.product(families_of(theirs), families_of(ours))
        if (one.prefix, other.prefix) not in done
    ]
    return _best(pairs, fitting)


def _best(families: Iterable[tuple[Family, Family]], fitting: Fitting) -> Alignment | None:
    candidates: list[_Candidate] = []
    for one, other in families:
        candidates += _candidates(one, other, fitting)
    candidates.sort(key=lambda candidate: candidate.score, reverse=True)
    wishes = Counter(wish for candidate in candidates for wish in candidate.wishes)
    clear = (c for c in candidates if all(wishes[wish] == 1 for wish in c.wishes))
    return next((candidate.alignment for candidate in clear), None)


def _candidates(theirs: Family, ours: Family, fitting: Fitting) -> Iterator[_Candidate]:
    """Yield the ways to align two families: as they are, or the shorter one within the other.

    Each way ends at the first blocks that do not fit, and the search at the second way. Only
    families that almost fit in many ways take time in proportion to the product of their blocks.
    """
    one, other = side_of(theirs.prefix), side_of(ours.prefix)
    if one and other and one != other:
        return
    difference = len(ours.blocks) - len(theirs.blocks)
    fitting_ways: list[tuple[int, list[tuple[Block, Block]]]] = []
    for offset in range(abs(difference) + 1):
        total = _total_covered(_pairs(theirs, ours, offset), fitting)
        if total is not None:
            fitting_ways.append((total, list(_pairs(theirs, ours, offset))))
        if len(fitting_ways) > 1:
            return
    for total, pairs in fitting_ways:
        alike = len({*words(theirs.prefix).split()} & {*words(ours.prefix).split()})
        depth = theirs.prefix.count("#") + ours.prefix.count("#")
        yield _Candidate((len(pairs), total, alike, depth), Alignment(theirs, ours, pairs))


def _pairs(theirs: Family, ours: Family, offset: int) -> Iterator[tuple[Block, Block]]:
    """Yield blocks side by side, from an offset in the longer family on."""
    is_ours = len(ours.blocks) > len(theirs.blocks)
    for place in range(min(len(theirs.blocks), len(ours.blocks))):
        yield (
            theirs.blocks[place if is_ours else place + offset],
            ours.blocks[place + offset if is_ours else place],
        )


def _total_covered(pairs: Iterable[tuple[Block, Block]], fitting: Fitting) -> int | None:
    """Return how many layers of the model are covered in all; None if blocks do not fit."""
    total = 0
    for theirs, ours in pairs:
        covered = _covered(theirs, ours, fitting)
        if covered < _COVERED * len(ours.units) or not _is_used(theirs, ours, fitting):
            return None
        total += covered
    return total


def _covered(theirs: Block, ours: Block, fitting: Fitting) -> int:
    """Return the number of a block's layers that some layer of the other block may fit."""
    their_roles = set(theirs.roles.values())
    distinct = _distinct(theirs, fitting.their_form)
    covered = 0
    for name, unit in ours.units.items():
        role = ours.roles[name]
        fused = _fused_role(role) in their_roles or role.startswith("expert_")
        covered += fused or any(
            _no_conflict(other, role) and fitting.fits(candidate, unit)
            for other, candidate in distinct.get(unit.measure, ())
        )
    return covered


def _is_used(theirs: Block, ours: Block, fitting: Fitting) -> bool:
    """Return True if most layers of a block of the checkpoint may fit some in the model's block.

    Layers of many experts count as one.
    """
    our_roles = {_fused_role(role) for role in ours.roles.values()} | {*ours.roles.values()} - {""}
    distinct = _distinct(ours, fitting.our_form)
    kinds: dict[tuple[str, ...], bool] = {}
    for name, unit in theirs.units.items():
        role = theirs.roles[name]
        kind = numbering.split(name)[0] if role.startswith("expert_") else (name,)
        kinds[kind] = role in our_roles or any(
            _no_conflict(role, other) and fitting.fits(unit, candidate)
            for other, candidate in distinct.get(unit.measure, ())
        )
    return sum(kinds.values()) > _COVERED * len(kinds)


def _distinct(
    block: Block, form: Callable[[Unit], int]
) -> dict[object, Collection[tuple[str, Unit]]]:
    """Return the roles and layers of a block by their measures, one layer of each form."""
    found: dict[object, dict[tuple[str, int], tuple[str, Unit]]] = {}
    for name, unit in block.units.items():
        role = block.roles[name]
        found.setdefault(unit.measure, {}).setdefault((role, form(unit)), (role, unit))
    return {each: units.values() for each, units in found.items()}


def _fused_role(role: str) -> str:
    start, _, part = role.rpartition("_")
    return f"{start}_{_FUSED[part]}" if start and part in _FUSED else _FUSED.get(part, "?")


def _no_conflict(one: str, other: str) -> bool:
    return not one or not other or one == other
