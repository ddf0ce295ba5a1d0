"""Which name of a source is which variable, where names can be read in more than one way.

A name in a file may be a variable's path, its path without the model's name, or the names of its
owners, and what is the one for a variable may be the other for another: `dense/kernel` is a dense
layer of the model itself, or one of a functional model within it. So names are not looked up one by
one. All are brought together with all variables, the surest pairs first; a pair takes its name and
its variable out, and what could go in more than one way is not decided.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from keras_trainops.weight_names import NamedWeight


class Candidate(NamedTuple):
    """A name that may stand for a variable.

    Attributes:
        name: The name.
        position: The variable's position.
        strength: How much speaks for it; larger is more.
        by_owners: Whether the names of all owners agree.
        partial: Whether the name leaves out an owner, so that it may be meant by others too.
    """

    name: str
    position: int
    strength: tuple[int, int]
    by_owners: bool = False
    partial: bool = False


@dataclass
class Pairing:
    """What names lead to.

    Attributes:
        positions: The variable of each name that has one.
        ambiguous: The variables that each undecided name could stand for.
    """

    positions: dict[str, int] = field(default_factory=dict)
    ambiguous: dict[str, list[int]] = field(default_factory=dict)


def strength_of_name(name: str, position: int, weight: NamedWeight) -> Candidate:
    """A name that is one of the spellings of `weight`: the longer, the surer."""
    by_owners = name in weight.owners
    partial = not by_owners and any(owner.endswith(f"/{name}") for owner in weight.owners)
    return Candidate(name, position, (0, name.count("/")), by_owners, partial)


def pair(
    names: Sequence[str], candidates: Iterable[Candidate], certain: Mapping[str, list[int]]
) -> Pairing:
    """Pairs names with variables, each with one, as far as that is certain.

    Args:
        names: All names of the source that may be of weights: not those of optimizer slots.
        candidates: What they may stand for.
        certain: Names that are beyond doubt. Several may be for one variable, which layers share.
    """
    result = Pairing()
    taken: set[int] = set()
    for name, positions in certain.items():
        if len(positions) == 1:
            result.positions[name] = positions[0]
        else:
            result.ambiguous[name] = positions
        taken.update(positions)
    levels: dict[tuple[int, int], list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        levels[candidate.strength].append(candidate)
    partial = {}
    for strength in sorted(levels, reverse=True):
        free = [
            c
            for c in levels[strength]
            if c.position not in taken
            and c.name not in result.positions
            and c.name not in result.ambiguous
        ]
        for candidate in _certain(free):
            result.positions[candidate.name] = candidate.position
            taken.add(candidate.position)
            if candidate.partial:
                partial[candidate.name] = candidate.position
        for candidate in free:
            if candidate.name not in result.positions and candidate.position not in taken:
                result.ambiguous.setdefault(candidate.name, []).append(candidate.position)
        taken.update(p for found in result.ambiguous.values() for p in found)
    _doubt(names, partial, result)
    return result


def _certain(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those of one strength that no other of them contradicts.

    Where several names could be a variable's, the one that agrees in all owners counts.
    """
    of_name: dict[str, list[Candidate]] = defaultdict(list)
    of_variable: dict[int, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        of_name[candidate.name].append(candidate)
        of_variable[candidate.position].append(candidate)
    certain = []
    for rivals in of_variable.values():
        best = [c for c in rivals if c.by_owners] if len(rivals) > 1 else rivals
        if len(best) == 1 and len(of_name[best[0].name]) == 1:
            certain.append(best[0])
    return certain


def _doubt(names: Sequence[str], partial: Mapping[str, int], result: Pairing) -> None:
    """Takes back what rests on the end of a variable's name that other names end in as well.

    For `trunk/dense/kernel`, called `dense/kernel` by Keras, a file's `dense/kernel` is as good as
    its `backbone/dense/kernel`, unless that is another variable's.
    """
    if not partial:
        return
    left = [n for n in names if n not in result.positions and n not in result.ambiguous]
    for name, position in partial.items():
        rivals = [other for other in left if other.endswith(f"/{name}")]
        if rivals:
            del result.positions[name]
            for rival in (name, *rivals):
                result.ambiguous.setdefault(rival, []).append(position)
