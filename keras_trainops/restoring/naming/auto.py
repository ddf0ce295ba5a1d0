"""Pair names by their longest common end, automatic numbers counted anew."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from keras_trainops.numbering import Place, automatic, stem

Shape: TypeAlias = tuple[int, ...]


@dataclass
class Pairs:
    """The result of the heuristic.

    Attributes:
        key_of: The key for each path that has exactly one.
        candidates: The possible keys for each ambiguous path.
    """

    key_of: dict[str, str] = field(default_factory=dict)
    candidates: dict[str, list[str]] = field(default_factory=dict)


def pair(paths: Mapping[str, Shape], keys: Mapping[str, Shape]) -> Pairs:
    """Pair paths of variables with keys of a checkpoint.

    Args:
        paths: The shape of each variable, by path.
        keys: The shape of each tensor, by key.

    Example:
        >>> pair({"dense/kernel": (3, 2)}, {"net/dense_4/kernel": (3, 2), "net/x/bias": (2,)})
        Pairs(key_of={'dense/kernel': 'net/dense_4/kernel'}, candidates={})
    """
    pairs = Pairs()
    _pair_renumbered(paths, keys, pairs)
    depth = max((name.count("/") + 1 for name in paths), default=0)
    for length in range(depth, 0, -1):
        ours = _by_end(paths.keys() - pairs.key_of.keys() - pairs.candidates.keys(), length)
        theirs = _by_end(keys.keys() - set(pairs.key_of.values()), length)
        for end, left in ours.items():
            if end and end in theirs:
                _pair_one_end(
                    {path: paths[path] for path in left},
                    {key: keys[key] for key in theirs[end]},
                    pairs,
                    whatever_shape=length > 1,
                )
    return pairs


def _pair_renumbered(paths: Mapping[str, Shape], keys: Mapping[str, Shape], pairs: Pairs) -> None:
    """Pair names that differ only in automatic numbers, unless the sets of numbers disagree."""
    ours, theirs, unsure = _renumbered(list(paths), list(keys))
    key_by_name = {name: key for key, name in theirs.items()}
    alike: dict[tuple[Shape, str], list[str]] = defaultdict(list)
    for key, shape in keys.items():
        alike[shape, _end(key, 1)].append(key)
    for path, name in ours.items():
        if path in unsure:
            pairs.candidates[path] = alike.get((paths[path], _end(path, 1)), [])
        elif name in key_by_name:
            pairs.key_of[path] = key_by_name[name]


def _renumbered(
    ours: Sequence[str], theirs: Sequence[str]
) -> tuple[dict[str, str], dict[str, str], set[str]]:
    """Replace each automatic number by its rank among those of its siblings.

    If one side has more siblings of a kind than the other, ranks mean nothing and the numbers stay.

    Returns:
        The new names of both sides, and our names with a number that the other side lacks.
    """
    our_names, their_names = dict.fromkeys(ours, ""), dict.fromkeys(theirs, "")
    unsure: set[str] = set()
    depth = max((name.count("/") for name in (*ours, *theirs)), default=0)
    for level in range(depth):
        our_ranks = _sibling_ranks(our_names, level)
        their_ranks = _sibling_ranks(their_names, level)
        unsure |= _append_component(our_names, level, our_ranks, their_ranks)
        _append_component(their_names, level, their_ranks, our_ranks)
    for names in (our_names, their_names):
        for name in names:
            names[name] += name.rpartition("/")[2]
    return our_names, their_names, unsure


def _sibling_ranks(renumbered: Mapping[str, str], level: int) -> dict[Place, dict[int, int]]:
    """Return the rank of each automatic number among the siblings at one level.

    Args:
        renumbered: The renumbered part above that level, by name.
        level: The index of the component.
    """
    numbers: dict[Place, set[int]] = defaultdict(set)
    for name, above in renumbered.items():
        owners = name.split("/")[:-1]
        if level < len(owners):
            kind, number = automatic(owners[level])
            numbers[above, kind].add(number)
    return {
        place: {number: rank for rank, number in enumerate(sorted(found))}
        for place, found in numbers.items()
    }


def _append_component(
    renumbered: dict[str, str],
    level: int,
    own: Mapping[Place, Mapping[int, int]],
    other: Mapping[Place, Mapping[int, int]],
) -> set[str]:
    """Append the component at `level`, with its rank or its number, to each renumbered part.

    Args:
        renumbered: The renumbered part above that level, by name; changed in place.
        level: The index of the component.
        own: The ranks of the siblings on this side.
        other: The ranks of the siblings on the other side.

    Returns:
        The names with siblings of which the other side lacks a number.
    """
    unsure = set()
    for name, above in renumbered.items():
        owners = name.split("/")[:-1]
        if level >= len(owners):
            continue
        kind, number = automatic(owners[level])
        ranks = own[above, kind]
        there = other.get((above, kind), ranks)
        mark = f"#{ranks[number]}" if len(there) == len(ranks) else f"_{number}"
        if len(there) != len(ranks) and not ranks.keys() <= there.keys():
            unsure.add(name)
        renumbered[name] = f"{above}{kind}{mark}/"
    return unsure


def _by_end(names: Iterable[str], length: int) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[_end(name, length)].append(name)
    return found


def _end(name: str, length: int) -> str:
    """Return the last components, owners without automatic numbers; empty if there are fewer."""
    parts = name.split("/")
    if len(parts) < length:
        return ""
    *owners, leaf = parts[-length:]
    return "/".join([*(stem(owner) for owner in owners), leaf])


def _pair_one_end(
    ours: Mapping[str, Shape], theirs: Mapping[str, Shape], pairs: Pairs, whatever_shape: bool
) -> None:
    """Pair names with a common end, if there is one of each shape on both sides.

    Args:
        ours: Paths of variables.
        theirs: Keys of the checkpoint.
        pairs: Receives the pairs and candidates.
        whatever_shape: If True, one path and one key are paired even if their shapes differ, so
            that the difference is reported.
    """
    if whatever_shape and len(ours) == len(theirs) == 1:
        pairs.key_of[next(iter(ours))] = next(iter(theirs))
        return
    rivals = Counter(ours.values())
    by_shape: dict[Shape, list[str]] = defaultdict(list)
    for key in sorted(theirs):
        by_shape[theirs[key]].append(key)
    for path in sorted(ours):
        fitting = by_shape.get(ours[path], [])
        if rivals[ours[path]] == len(fitting) == 1:
            pairs.key_of[path] = fitting[0]
        elif fitting:
            pairs.candidates[path] = fitting
