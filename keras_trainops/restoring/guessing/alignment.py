"""Align the blocks of a checkpoint with those of a model, before any layer is paired.

A block of one side belongs to one block of the other, and the order of the blocks is the same on
both sides. No layer of an aligned block can be paired outside its block.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
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
    for i, candidate in enumerate(candidates):
        rivals = [
            other
            for j, other in enumerate(candidates)
            if i != j and other.score == candidate.score and _share(other, candidate)
        ]
        if not rivals:
            return candidate.alignment
    return None


def _share(one: _Candidate, other: _Candidate) -> bool:
    """Return True if two candidates want the same family, but other blocks for it."""
    a, b = one.alignment, other.alignment
    return a.theirs is b.theirs or a.ours is b.ours


def _candidates(theirs: Family, ours: Family, fitting: Fitting) -> Iterator[_Candidate]:
    """Yield the ways to align two families: as they are, or the shorter one within the other."""
    one, other = side_of(theirs.prefix), side_of(ours.prefix)
    if one and other and one != other:
        return
    difference = len(ours.blocks) - len(theirs.blocks)
    fitting_ways: list[tuple[int, list[tuple[Block, Block]]]] = []
    for offset in range(abs(difference) + 1):
        their_blocks = theirs.blocks[offset if difference < 0 else 0 :]
        our_blocks = ours.blocks[offset if difference > 0 else 0 :]
        pairs = list(zip(their_blocks, our_blocks, strict=False))
        covered = [_covered(a, b, fitting) for a, b in pairs]
        enough = [n >= _COVERED * len(b.units) for n, (_, b) in zip(covered, pairs, strict=True)]
        if all(enough) and all(_is_used(a, b, fitting) for a, b in pairs):
            fitting_ways.append((sum(covered), pairs))
    if difference and len(fitting_ways) != 1:
        return
    for total, pairs in fitting_ways:
        alike = len({*words(theirs.prefix).split()} & {*words(ours.prefix).split()})
        depth = theirs.prefix.count("#") + ours.prefix.count("#")
        yield _Candidate((len(pairs), total, alike, depth), Alignment(theirs, ours, pairs))


def _covered(theirs: Block, ours: Block, fitting: Fitting) -> int:
    """Return the number of a block's layers that some layer of the other block may fit."""
    their_roles = set(theirs.roles.values())
    covered = 0
    for name, unit in ours.units.items():
        role = ours.roles[name]
        fused = _fused_role(role) in their_roles or role.startswith("expert_")
        covered += fused or any(
            _no_conflict(theirs.roles[other], role) and fitting.fits(candidate, unit)
            for other, candidate in theirs.units.items()
        )
    return covered


def _is_used(theirs: Block, ours: Block, fitting: Fitting) -> bool:
    """Return True if most layers of a block of the checkpoint may fit some in the model's block.

    Layers of many experts count as one.
    """
    our_roles = {_fused_role(role) for role in ours.roles.values()} | {*ours.roles.values()} - {""}
    kinds: dict[tuple[str, ...], bool] = {}
    for name, unit in theirs.units.items():
        role = theirs.roles[name]
        kind = numbering.split(name)[0] if role.startswith("expert_") else (name,)
        kinds[kind] = role in our_roles or any(
            _no_conflict(role, ours.roles[other]) and fitting.fits(unit, candidate)
            for other, candidate in ours.units.items()
        )
    return sum(kinds.values()) > _COVERED * len(kinds)


def _fused_role(role: str) -> str:
    start, _, part = role.rpartition("_")
    return f"{start}_{_FUSED[part]}" if start and part in _FUSED else _FUSED.get(part, "?")


def _no_conflict(one: str, other: str) -> bool:
    return not one or not other or one == other
