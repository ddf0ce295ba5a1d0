"""Which layer of a checkpoint is which of a model: by names, shapes and, told apart, by order.

Groups are as large as can be: what one rule does for all members of a family is no accident. A
group is settled where it can only go one way and nobody else wants to go there, or where its words
(`query`) say so more clearly than those of all others; then where it stands beside what its
siblings went to, or is the larger one. What is left goes by order where two whole sequences have
the same shapes one by one. The rest stays open.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from keras_trainops import numbering
from keras_trainops.restoring.guessing import families
from keras_trainops.restoring.guessing.layers import Layer, matching_leaves, parted

NAMES, SHAPES, ORDER = "names and shapes", "shapes: nothing else fits", "order; check"


_Likeness = Callable[[families.Pairing], tuple[float, ...]]


class _Claim(NamedTuple):
    """Layers that go together, and the ways they can go."""

    part: tuple[str, ...]
    ways: list[families.Pairing]


class Group(NamedTuple):
    """Layers of both sides, by name, that fit each other in more than one way."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]


@dataclass
class Search:
    """Layers by name on both sides, and what was found so far.

    Attributes:
        theirs, ours: The layers of the checkpoint and of the model, in order.
        torch: Whether the checkpoint has PyTorch's layouts.
        ordered: Whether the checkpoint's order is one that somebody gave it.
        found: Name there -> name here.
        reasons: What a name of the checkpoint was settled by.
    """

    theirs: Mapping[str, Layer]
    ours: Mapping[str, Layer]
    torch: bool
    ordered: bool
    found: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def fits(self, name: str, other: str) -> bool:
        """Whether a layer of the checkpoint fits one of the model."""
        return matching_leaves(self.theirs[name], self.ours[other], self.torch) is not None

    def open_theirs(self) -> list[str]:
        """Layers of the checkpoint that are not settled."""
        return [name for name in self.theirs if name not in self.found]

    def open_ours(self) -> list[str]:
        """Layers of the model that are not settled."""
        taken = set(self.found.values())
        return [name for name in self.ours if name not in taken]

    def settle(self, pairing: families.Pairing, reason: str) -> None:
        """Takes a pairing for right."""
        self.found |= pairing
        self.reasons |= dict.fromkeys(pairing, reason)

    def run(self) -> list[Group]:
        """Settles what can be settled; returns what stays open."""
        while winners := list(self._winners(_words)):
            for winner in winners:
                self.settle(winner, self.reason(winner))
        # From here on all rests on order: also that nothing else fits any more.
        while way := self._first(self._nearness) or self._first(_words_or_size):
            self.settle(way, ORDER)
        self._settle_sequences()
        return [group for group in self._groups() if group.theirs and group.ours]

    def _claims(self) -> list[_Claim]:
        """The largest groups that can go somewhere, the largest first."""
        goals = numbering.by_family(self.open_ours())
        claims: list[_Claim] = []
        for family in numbering.by_family(self.open_theirs()):
            for partition in families.partitions(family):
                found = [
                    _Claim(tuple(part), ways)
                    for part in partition
                    for ways in [[w for goal in goals for w in self._ways(part, goal)]]
                    if ways
                ]
                if found:
                    claims += found
                    break
        return sorted(claims, key=lambda claim: len(claim.part), reverse=True)

    def _ways(self, part: Sequence[str], goal: Sequence[str]) -> list[families.Pairing]:
        if len(part) == 1:
            return [{part[0]: other} for other in goal if self.fits(part[0], other)]
        return families.pairings(part, goal, self.fits) if len(part) <= len(goal) else []

    def _winners(self, likeness: _Likeness) -> Iterator[families.Pairing]:
        """Ways that are better than all that is against them, those of the largest groups first.

        Against a way are the other ways of its group and what others, smaller groups too, make of
        its goals. No two winners have a goal in common.
        """
        claims = self._claims()
        ways = [
            sorted([(likeness(w), w) for w in claim.ways], key=lambda liked: liked[0], reverse=True)
            for claim in claims
        ]
        wanted: dict[str, dict[int, tuple[float, ...]]] = {}  # by whom, and how much
        for i, liked in enumerate(ways):
            for like, way in liked:
                for goal in way.values():
                    wanted.setdefault(goal, {}).setdefault(i, like)
        best_two = {goal: _best_two(by) for goal, by in wanted.items()}
        for i, ((like, way), *others) in enumerate(ways):
            against = [other for other, _ in others[:1]]
            against += [w for goal in way.values() for w, j in best_two[goal] if j != i]
            if all(like > other for other in against):
                yield way

    def _first(self, likeness: _Likeness) -> families.Pairing | None:
        return next(self._winners(likeness), None)

    def reason(self, pairing: families.Pairing) -> str:
        """What a pairing that is better than others rests on."""
        leaves = [self.theirs[name].leaves for name in pairing]
        if len(set(leaves)) < len(leaves) and families.numbers_change(pairing):
            return ORDER
        shared = all(families.common_words(*pair) for pair in pairing.items())
        return NAMES if shared else SHAPES

    @functools.cached_property
    def _place(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.ours)}

    def _nearness(self, pairing: families.Pairing) -> tuple[float, ...]:
        """How near the layers would stand to those that their siblings went to."""
        place = self._place
        distances = []
        for name, other in pairing.items():
            parent = parted(name, "/.")[0]
            beside = [
                abs(place[there] - place[other])
                for sibling, there in self.found.items()
                if parted(sibling, "/.")[0] == parent
            ]
            distances.append(min(beside, default=len(place)))
        return (-sum(distances) / len(distances),)

    def _settle_sequences(self) -> None:
        """Settles groups by order alone, where both sides have the same shapes one by one."""
        for theirs, ours in self._groups():
            one_family = len(numbering.by_family(theirs)) == 1
            if len(theirs) == len(ours) and (self.ordered or one_family):
                names = theirs if self.ordered else sorted(theirs, key=natural)
                pairing = dict(zip(names, ours, strict=True))
                if all(self.fits(*pair) for pair in pairing.items()):
                    self.settle(pairing, ORDER)

    def _groups(self) -> Iterator[Group]:
        """Open layers that fit each other, directly or through others."""
        ours = self.open_ours()
        left = dict.fromkeys(self.open_theirs())
        while left:
            theirs_in, ours_in, fresh = set[str](), set[str](), [next(iter(left))]
            while fresh:
                theirs_in.update(fresh)
                ours_in |= {other for other in ours if any(self.fits(n, other) for n in fresh)}
                fresh = [
                    name
                    for name in left
                    if name not in theirs_in and any(self.fits(name, other) for other in ours_in)
                ]
            yield Group(
                tuple(name for name in left if name in theirs_in),
                tuple(name for name in ours if name in ours_in),
            )
            left = {name: None for name in left if name not in theirs_in}


def _best_two(wanted: Mapping[int, tuple[float, ...]]) -> list[tuple[tuple[float, ...], int]]:
    """The groups that want a goal most: whoever asks is one of them, or the first is against it."""
    return heapq.nlargest(2, ((like, i) for i, like in wanted.items()))


def _words(pairing: families.Pairing) -> tuple[float, ...]:
    """How many words are in common, then components at the end, then members of the family.

    Where no word is, a pairing is as good as any other.
    """
    words = families.common_words(*next(iter(pairing.items())))  # a family's are the same
    end = min(itertools.starmap(families.common_end, pairing.items()))
    return (words, end, len(pairing)) if words else (0, 0, 0)


def _words_or_size(pairing: families.Pairing) -> tuple[float, ...]:
    return *_words(pairing), len(pairing)


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Sorts by numbers as numbers: `layer.2` before `layer.10`."""
    texts, numbers = numbering.split(name)
    padded = [*numbers, "0"]
    return [(bool(t), int(n), t) for t, n in zip(texts, padded, strict=True)]
