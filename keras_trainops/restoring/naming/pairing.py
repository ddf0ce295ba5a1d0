"""Pair the names of a source with variables, if a name can be read in several ways.

A name in a file may be a variable's path, its path without the model's name, or the names of its
owners. A name that fits one variable in one way may fit another in another way: `dense/kernel` may
belong to a layer of the model itself, or to a functional model inside it. So names are not looked
up one by one. Instead, all names are paired with all variables, the strongest candidates first.
Each pair removes its name and its variable; a choice between several variables is left open.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from keras_trainops.restoring.naming.target import Target

Strength: TypeAlias = tuple[int, int]


class Match(NamedTuple):
    """A variable that a name may refer to.

    Attributes:
        name: The name.
        target: The variable.
        strength: The strength of the evidence; larger is stronger.
        by_owners: If True, the names of all owners agree.
        partial: If True, the name leaves out an owner, so other variables may have it too.
    """

    name: str
    target: Target
    strength: Strength
    by_owners: bool = False
    partial: bool = False


@dataclass
class Pairing:
    """The variables that names refer to.

    Attributes:
        targets: The variable of each name that refers to exactly one.
        ambiguous: The candidate variables of each name that is ambiguous.
    """

    targets: dict[str, Target] = field(default_factory=dict)
    ambiguous: dict[str, list[Target]] = field(default_factory=dict)

    def is_open(self, name: str) -> bool:
        """Return True if a name has neither a variable nor candidates."""
        return name not in self.targets and name not in self.ambiguous


def by_spelling(name: str, target: Target) -> Match:
    """Return the candidate for a name that is one of a variable's; longer names are stronger."""
    weight = target.weight
    by_owners = name in weight.owners
    partial = not by_owners and any(owner.endswith(f"/{name}") for owner in weight.owners)
    return Match(name, target, (0, name.count("/")), by_owners, partial)


def pair(
    names: Sequence[str], candidates: Iterable[Match], certain: Mapping[str, list[Target]]
) -> Pairing:
    """Pair names with variables, at most one name per variable, wherever the choice is clear.

    Args:
        names: All names of the source that may refer to weights, without optimizer slots.
        candidates: The variables that the names may refer to.
        certain: Variables of names that are beyond doubt. Several names may refer to one variable
            that layers share.

    Returns:
        The pairs and the ambiguous names.
    """
    result = Pairing()
    taken: set[Target] = set()
    for name, targets in certain.items():
        if len(targets) == 1:
            result.targets[name] = targets[0]
        else:
            result.ambiguous[name] = targets
        taken.update(targets)
    partial: dict[str, Target] = {}
    for level in _by_descending_strength(candidates):
        free = [c for c in level if c.target not in taken and result.is_open(c.name)]
        partial |= _pair_level(free, taken, result)
    _withdraw_doubtful(names, partial, result)
    return result


def _by_descending_strength(candidates: Iterable[Match]) -> list[list[Match]]:
    levels: dict[Strength, list[Match]] = defaultdict(list)
    for candidate in candidates:
        levels[candidate.strength].append(candidate)
    return [levels[strength] for strength in sorted(levels, reverse=True)]


def _pair_level(free: Sequence[Match], taken: set[Target], result: Pairing) -> dict[str, Target]:
    """Pair candidates of equal strength, and add their variables to `taken`.

    Args:
        free: Candidates of equal strength whose names and variables are not paired yet.
        taken: The variables that are paired or ambiguous, changed in place.
        result: The pairs so far, changed in place.

    Returns:
        The pairs that rest on a partial name.
    """
    chosen = _undisputed(free)
    for candidate in chosen:
        result.targets[candidate.name] = candidate.target
        taken.add(candidate.target)
    for candidate in free:
        if candidate.name not in result.targets and candidate.target not in taken:
            result.ambiguous.setdefault(candidate.name, []).append(candidate.target)
    taken.update(*result.ambiguous.values())
    return {candidate.name: candidate.target for candidate in chosen if candidate.partial}


def _undisputed(candidates: Sequence[Match]) -> list[Match]:
    """Return the candidates that no other candidate of equal strength contradicts.

    If a variable has several candidates, the one that agrees in all owners is chosen.
    """
    of_name: dict[str, list[Match]] = defaultdict(list)
    of_variable: dict[Target, list[Match]] = defaultdict(list)
    for candidate in candidates:
        of_name[candidate.name].append(candidate)
        of_variable[candidate.target].append(candidate)
    undisputed = []
    for rivals in of_variable.values():
        best = [c for c in rivals if c.by_owners] if len(rivals) > 1 else rivals
        if len(best) == 1 and len(of_name[best[0].name]) == 1:
            undisputed.append(best[0])
    return undisputed


def _withdraw_doubtful(
    names: Sequence[str], partial: Mapping[str, Target], result: Pairing
) -> None:
    """Make pairs ambiguous that rest on a partial name if other names end in the same way.

    For `trunk/dense/kernel`, which Keras calls `dense/kernel`, a file's `dense/kernel` is as good
    a match as its `backbone/dense/kernel`, unless the latter belongs to another variable.

    Args:
        names: All names of the source.
        partial: The variables of partial names.
        result: The pairs, changed in place.
    """
    if not partial:
        return
    rivals_of: dict[str, list[str]] = defaultdict(list)
    for other in filter(result.is_open, names):
        for place in (place for place, letter in enumerate(other) if letter == "/"):
            if other[place + 1 :] in partial:
                rivals_of[other[place + 1 :]].append(other)
    for name, target in partial.items():
        if rivals := rivals_of[name]:
            del result.targets[name]
            for rival in (name, *rivals):
                result.ambiguous.setdefault(rival, []).append(target)
