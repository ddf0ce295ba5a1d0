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

from keras_trainops.restoring.naming.target import Target


class Candidate(NamedTuple):
    """A name that may stand for a variable.

    Attributes:
        name: The name.
        target: The variable.
        strength: How much speaks for it; larger is more.
        by_owners: Whether the names of all owners agree.
        partial: Whether the name leaves out an owner, so that it may be meant by others too.
    """

    name: str
    target: Target
    strength: tuple[int, int]
    by_owners: bool = False
    partial: bool = False


@dataclass
class Pairing:
    """What names lead to.

    Attributes:
        targets: The variable of each name that has one.
        ambiguous: The variables that each undecided name could stand for.
    """

    targets: dict[str, Target] = field(default_factory=dict)
    ambiguous: dict[str, list[Target]] = field(default_factory=dict)


def by_spelling(name: str, target: Target) -> Candidate:
    """Return the candidate of a name that is one of a variable's: the longer, the surer."""
    weight = target.weight
    by_owners = name in weight.owners
    partial = not by_owners and any(owner.endswith(f"/{name}") for owner in weight.owners)
    return Candidate(name, target, (0, name.count("/")), by_owners, partial)


def pair(
    names: Sequence[str], candidates: Iterable[Candidate], certain: Mapping[str, list[Target]]
) -> Pairing:
    """Pairs names with variables, each with one, as far as that is certain.

    Args:
        names: All names of the source that may be of weights: not those of optimizer slots.
        candidates: What they may stand for.
        certain: Names that are beyond doubt. Several may be for one variable, which layers share.
    """
    result = Pairing()
    taken: set[Target] = set()
    for name, targets in certain.items():
        if len(targets) == 1:
            result.targets[name] = targets[0]
        else:
            result.ambiguous[name] = targets
        taken.update(targets)
    levels: dict[tuple[int, int], list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        levels[candidate.strength].append(candidate)
    partial = {}
    for strength in sorted(levels, reverse=True):
        free = [
            c
            for c in levels[strength]
            if c.target not in taken
            and c.name not in result.targets
            and c.name not in result.ambiguous
        ]
        for candidate in _certain(free):
            result.targets[candidate.name] = candidate.target
            taken.add(candidate.target)
            if candidate.partial:
                partial[candidate.name] = candidate.target
        for candidate in free:
            if candidate.name not in result.targets and candidate.target not in taken:
                result.ambiguous.setdefault(candidate.name, []).append(candidate.target)
        taken.update(*result.ambiguous.values())
    _doubt(names, partial, result)
    return result


def _certain(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those of one strength that no other of them contradicts.

    Where several names could be a variable's, the one that agrees in all owners counts.
    """
    of_name: dict[str, list[Candidate]] = defaultdict(list)
    of_variable: dict[Target, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        of_name[candidate.name].append(candidate)
        of_variable[candidate.target].append(candidate)
    certain = []
    for rivals in of_variable.values():
        best = [c for c in rivals if c.by_owners] if len(rivals) > 1 else rivals
        if len(best) == 1 and len(of_name[best[0].name]) == 1:
            certain.append(best[0])
    return certain


def _doubt(names: Sequence[str], partial: Mapping[str, Target], result: Pairing) -> None:
    """Takes back what rests on the end of a variable's name that other names end in as well.

    For `trunk/dense/kernel`, called `dense/kernel` by Keras, a file's `dense/kernel` is as good as
    its `backbone/dense/kernel`, unless that is another variable's.
    """
    if not partial:
        return
    left = [n for n in names if n not in result.targets and n not in result.ambiguous]
    for name, target in partial.items():
        rivals = [other for other in left if other.endswith(f"/{name}")]
        if rivals:
            del result.targets[name]
            for rival in (name, *rivals):
                result.ambiguous.setdefault(rival, []).append(target)
