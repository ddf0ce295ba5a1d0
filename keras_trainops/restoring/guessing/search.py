"""Pair layers of a checkpoint with layers of a model by names, shapes and order.

Groups are as large as possible, because one rule rarely works for all members of a family by
coincidence. A group is settled if only one way of pairing it exists and no other group wants the
same layers, or if its words (`query`) fit better than those of all rivals. Next, a group is settled
if its layers are close to the counterparts of their siblings, or if it is larger. The rest is
paired in order if two whole sequences have the same shapes one by one, or else stays open.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from keras_trainops import numbering
from keras_trainops.restoring.guessing import numbered_names
from keras_trainops.restoring.guessing.layers import Layer, matching_leaves, split_leaf
from keras_trainops.restoring.guessing.numbered_names import LayerPairs

NAMES, SHAPES, ORDER = "names and shapes", "shapes: nothing else fits", "order; check"

_Likeness: TypeAlias = tuple[float, ...]
_Ranking: TypeAlias = list[tuple[_Likeness, LayerPairs]]  # ways to pair one group, best first


class Group(NamedTuple):
    """Layers of both sides, by name, that fit each other in more than one way."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]


@dataclass
class Search:
    """A search for the counterparts of layers.

    Attributes:
        theirs: The layers of the checkpoint by name, in order.
        ours: The layers of the model by name, in order.
        torch: If True, the checkpoint has PyTorch's layouts.
        ordered: If True, the order of the checkpoint is not just alphabetical.
        found: Layer of the checkpoint -> layer of the model.
        reasons: Layer of the checkpoint -> reason for the pair.
    """

    theirs: Mapping[str, Layer]
    ours: Mapping[str, Layer]
    torch: bool
    ordered: bool
    found: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def fits(self, name: str, other: str) -> bool:
        """Return True if a layer of the checkpoint fits a layer of the model."""
        return matching_leaves(self.theirs[name], self.ours[other], self.torch) is not None

    def open_theirs(self) -> list[str]:
        """Return the layers of the checkpoint without a counterpart."""
        return [name for name in self.theirs if name not in self.found]

    def open_ours(self) -> list[str]:
        """Return the layers of the model without a counterpart."""
        taken = set(self.found.values())
        return [name for name in self.ours if name not in taken]

    def accept(self, pairs: LayerPairs, reason: str) -> None:
        """Accept pairs for a reason."""
        self.found |= pairs
        self.reasons |= dict.fromkeys(pairs, reason)

    def run(self) -> list[Group]:
        """Settle as many layers as possible, and return the groups that stay open."""
        while winners := list(self._winners(_common_words)):
            for winner in winners:
                self.accept(winner, self.reason(winner))
        # From here on everything rests on order, even if nothing else fits any more.
        while pairs := self._first(self._nearness) or self._first(_common_words_or_size):
            self.accept(pairs, ORDER)
        self._settle_sequences()
        return [group for group in self._groups() if group.theirs and group.ours]

    def _choices(self) -> list[list[LayerPairs]]:
        """Return all ways to pair each of the largest groups, the largest group first."""
        goals = numbering.by_family(self.open_ours())
        choices: list[list[LayerPairs]] = []
        for family in numbering.by_family(self.open_theirs()):
            choices += self._choices_of(family, goals)
        return sorted(choices, key=lambda ways: len(ways[0]), reverse=True)

    def _choices_of(self, family: Sequence[str], goals: list[list[str]]) -> list[list[LayerPairs]]:
        """Return the ways to pair each part of a family, with the largest parts possible."""
        for partition in numbered_names.partitions(family):
            choices = [self._ways(part, goals) for part in partition]
            if any(choices):
                return [ways for ways in choices if ways]
        return []

    def _ways(self, part: Sequence[str], goals: list[list[str]]) -> list[LayerPairs]:
        """Return all ways to pair a part of a family with members of one other family."""
        ways: list[LayerPairs] = []
        for goal in goals:
            if len(part) == 1:
                ways += [{part[0]: other} for other in goal if self.fits(part[0], other)]
            elif len(part) <= len(goal):
                ways += numbered_names.pairings(part, goal, self.fits)
        return ways

    def _winners(self, likeness: Callable[[LayerPairs], _Likeness]) -> Iterator[LayerPairs]:
        """Yield pairs that are better than all rivals, those of the largest groups first.

        Rivals are the other ways to pair the same group, and any way in which another group, even
        a smaller one, takes one of the same layers. No two winners share a layer of the model.
        """
        rankings = [_ranked(ways, likeness) for ways in self._choices()]
        claims = _strongest_claims(rankings)
        for group, ranking in enumerate(rankings):
            best, pairs = ranking[0]
            rivals = [other for other, _ in ranking[1:2]]
            for layer in pairs.values():
                rivals += [other for other, claimant in claims[layer] if claimant != group]
            if all(best > rival for rival in rivals):
                yield pairs

    def _first(self, likeness: Callable[[LayerPairs], _Likeness]) -> LayerPairs | None:
        return next(self._winners(likeness), None)

    def reason(self, pairs: LayerPairs) -> str:
        """Return the reason for pairs that are better than all rivals."""
        leaves = [self.theirs[name].leaves for name in pairs]
        if len(set(leaves)) < len(leaves) and numbered_names.numbers_change(pairs):
            return ORDER
        shared = all(numbered_names.common_words(*pair) for pair in pairs.items())
        return NAMES if shared else SHAPES

    @functools.cached_property
    def _position(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.ours)}

    def _nearness(self, pairs: LayerPairs) -> _Likeness:
        """Return how close layers would be to the counterparts of their siblings."""
        return (-sum(itertools.starmap(self._distance, pairs.items())) / len(pairs),)

    def _distance(self, name: str, other: str) -> int:
        parent = split_leaf(name, "/.")[0]
        beside = [
            abs(self._position[counterpart] - self._position[other])
            for sibling, counterpart in self.found.items()
            if split_leaf(sibling, "/.")[0] == parent
        ]
        return min(beside, default=len(self._position))

    def _settle_sequences(self) -> None:
        """Settle groups by order alone if both sides have the same shapes one by one."""
        for theirs, ours in self._groups():
            one_family = len(numbering.by_family(theirs)) == 1
            if len(theirs) == len(ours) and (self.ordered or one_family):
                names = theirs if self.ordered else sorted(theirs, key=natural_order)
                pairs = dict(zip(names, ours, strict=True))
                if all(self.fits(*pair) for pair in pairs.items()):
                    self.accept(pairs, ORDER)

    def _groups(self) -> Iterator[Group]:
        """Yield the open layers that fit each other, directly or through other layers."""
        left, ours = self.open_theirs(), self.open_ours()
        while left:
            group = self._connected(left, ours)
            yield group
            left = [name for name in left if name not in group.theirs]

    def _connected(self, left: Sequence[str], ours: Sequence[str]) -> Group:
        """Return the group of the first of the layers that are left."""
        their_group, our_group, fresh = set[str](), set[str](), [left[0]]
        while fresh:
            their_group.update(fresh)
            our_group |= {other for other in ours if self._any_fits(fresh, [other])}
            rest = [name for name in left if name not in their_group]
            fresh = [name for name in rest if self._any_fits([name], our_group)]
        return Group(_in_order(their_group, left), _in_order(our_group, ours))

    def _any_fits(self, theirs: Iterable[str], ours: Iterable[str]) -> bool:
        return any(itertools.starmap(self.fits, itertools.product(theirs, ours)))


def _in_order(names: set[str], order: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in order if name in names)


def _ranked(ways: list[LayerPairs], likeness: Callable[[LayerPairs], _Likeness]) -> _Ranking:
    rated = [(likeness(pairs), pairs) for pairs in ways]
    return sorted(rated, key=lambda entry: entry[0], reverse=True)


def _strongest_claims(rankings: Sequence[_Ranking]) -> dict[str, list[tuple[_Likeness, int]]]:
    """Return, for each layer of the model, the two groups that want it most.

    Two are enough: each group only needs the strongest claim of another group.
    """
    claims: dict[str, dict[int, _Likeness]] = {}
    for group, ranking in enumerate(rankings):
        for like, pairs in ranking:
            for layer in pairs.values():
                claims.setdefault(layer, {}).setdefault(group, like)  # the best comes first
    return {layer: _two_strongest(by_group) for layer, by_group in claims.items()}


def _two_strongest(by_group: Mapping[int, _Likeness]) -> list[tuple[_Likeness, int]]:
    return heapq.nlargest(2, ((like, group) for group, like in by_group.items()))


def _common_words(pairs: LayerPairs) -> _Likeness:
    """Return the number of common words, then of common last components, then of members.

    All pairs without a common word are equally good.
    """
    words = numbered_names.common_words(*next(iter(pairs.items())))  # the same for the whole family
    end = min(itertools.starmap(numbered_names.common_end, pairs.items()))
    return (words, end, len(pairs)) if words else (0, 0, 0)


def _common_words_or_size(pairs: LayerPairs) -> _Likeness:
    return *_common_words(pairs), len(pairs)


def natural_order(name: str) -> list[tuple[bool, int, str]]:
    """Return a sort key that compares numbers as numbers: `layer.2` before `layer.10`."""
    texts, numbers = numbering.split(name)
    padded = [*numbers, "0"]
    return [(bool(t), int(n), t) for t, n in zip(texts, padded, strict=True)]
