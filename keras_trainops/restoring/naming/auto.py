"""`rename="auto"`: which key belongs to which variable, told by names and shapes alone.

A heuristic, and so only for who asks for it. It pairs

1. names that are the same once automatic numbers are counted anew: `dense_7`, `dense_8` in the file
   are `dense`, `dense_1` in the model, if both have as many of them;
2. of what is left, names with the longest common end (whole components) and, where several have
   the same, those of the same shape.

Whatever two could claim is not decided, but told with its candidates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from keras_trainops.numbering import automatic, stem

Shape = tuple[int, ...]


@dataclass
class Pairs:
    """What the heuristic found.

    Attributes:
        key_of: The key for each path that it is sure of.
        candidates: For each path that it is not sure of, the keys that it could be.
    """

    key_of: dict[str, str] = field(default_factory=dict)
    candidates: dict[str, list[str]] = field(default_factory=dict)


def pair(paths: Mapping[str, Shape], keys: Mapping[str, Shape]) -> Pairs:
    """Pairs paths of variables with keys of a checkpoint, each with its shape.

    Example:
        >>> pair({"dense/kernel": (3, 2)}, {"net/dense_4/kernel": (3, 2), "net/x/bias": (2,)})
        Pairs(key_of={'dense/kernel': 'net/dense_4/kernel'}, candidates={})
    """
    pairs = Pairs()
    _pair_renumbered(paths, keys, pairs)
    depth = max((name.count("/") + 1 for name in paths), default=0)
    for length in range(depth, 0, -1):
        taken = set(pairs.key_of.values())
        ends: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for path in paths.keys() - pairs.key_of.keys() - pairs.candidates.keys():
            ends[_end(path, length)][0].append(path)
        for key in keys.keys() - taken:
            ends[_end(key, length)][1].append(key)
        for end, (ours, theirs) in ends.items():
            if end and ours and theirs:
                _pair_by_shape(ours, theirs, paths, keys, pairs, alone=length > 1)
    return pairs


def agreed(found: Sequence[Pairs]) -> Pairs:
    """The pairs that are in all; of others the keys are candidates."""
    result = Pairs()
    for path in dict.fromkeys(p for pairs in found for p in (*pairs.key_of, *pairs.candidates)):
        keys = [pairs.key_of.get(path) for pairs in found]
        if keys[0] is not None and len(set(keys)) == 1:
            result.key_of[path] = keys[0]
        else:
            named = [key for key in keys if key is not None]
            named += [key for pairs in found for key in pairs.candidates.get(path, ())]
            result.candidates[path] = list(dict.fromkeys(named))
    return result


def _pair_renumbered(paths: Mapping[str, Shape], keys: Mapping[str, Shape], pairs: Pairs) -> None:
    """Pairs what is the same but for automatic numbers; those that do not agree are not guessed."""
    ours, theirs, unsure = _renumbered(list(paths), list(keys))
    key_by_name = {name: key for key, name in theirs.items()}
    for path, name in ours.items():
        if path in unsure:
            pairs.candidates[path] = [
                key for key in keys if keys[key] == paths[path] and _end(key, 1) == _end(path, 1)
            ]
        elif name in key_by_name:
            pairs.key_of[path] = key_by_name[name]


def _renumbered(
    ours: Sequence[str], theirs: Sequence[str]
) -> tuple[dict[str, str], dict[str, str], set[str]]:
    """The names on both sides, each automatic number as its rank among those of its siblings.

    Where one side has more siblings of a kind, ranks would say nothing: the numbers stay, and names
    of ours whose number the other side does not have are the third result.
    """
    sides = [dict.fromkeys(names, "") for names in (ours, theirs)]
    unsure: set[str] = set()
    depth = max((name.count("/") for names in sides for name in names), default=0)
    for level in range(depth):
        numbers: list[dict[tuple[str, str], set[int]]] = [defaultdict(set), defaultdict(set)]
        families: list[dict[str, tuple[tuple[str, str], int]]] = [{}, {}]
        for side in (0, 1):
            for name, so_far in sides[side].items():
                *owners, _ = name.split("/")
                if level < len(owners):
                    kind, number = automatic(owners[level])
                    numbers[side][so_far, kind].add(number)
                    families[side][name] = ((so_far, kind), number)
        ranks = [
            {family: {n: i for i, n in enumerate(sorted(found))} for family, found in of.items()}
            for of in numbers
        ]
        for side in (0, 1):
            for name, (family, number) in families[side].items():
                there = numbers[1 - side].get(family, numbers[side][family])
                if len(there) == len(numbers[side][family]):
                    mark = f"#{ranks[side][family][number]}"
                else:
                    mark = f"_{number}"
                    if side == 0 and not numbers[0][family] <= there:
                        unsure.add(name)
                sides[side][name] += f"{family[1]}{mark}/"
    for names in sides:
        for name in names:
            names[name] += name.rpartition("/")[2]
    return sides[0], sides[1], unsure


def _end(name: str, length: int) -> str:
    """The last components, without automatic numbers; empty if there are not so many."""
    parts = name.split("/")
    if len(parts) < length:
        return ""
    *owners, leaf = parts[-length:]
    return "/".join([*(stem(owner) for owner in owners), leaf])


def _pair_by_shape(
    ours: list[str],
    theirs: list[str],
    paths: Mapping[str, Shape],
    keys: Mapping[str, Shape],
    pairs: Pairs,
    alone: bool,
) -> None:
    """Pairs names with one end: the only one of each shape, or the only one there is."""
    if alone and len(ours) == len(theirs) == 1:
        pairs.key_of[ours[0]] = theirs[0]  # shapes that differ are told as such
        return
    for path in sorted(ours):
        rivals = [p for p in ours if paths[p] == paths[path]]
        fitting = sorted(k for k in theirs if keys[k] == paths[path])
        if len(rivals) == len(fitting) == 1:
            pairs.key_of[path] = fitting[0]
        elif fitting:
            pairs.candidates[path] = fitting
