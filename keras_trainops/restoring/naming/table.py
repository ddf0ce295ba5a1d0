"""Find the variable that a name in a checkpoint, or in a rename rule, refers to."""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeVar

import keras

from keras_trainops import keras_private, numbering, paths
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats.keras.naming import StoredVariable
from keras_trainops.checkpoints.formats.keras.weights import KerasWeightsCheckpoint
from keras_trainops.layouts.words import Meaning, split_name
from keras_trainops.restoring.naming.pairing import Match, Pairing, by_spelling, pair
from keras_trainops.restoring.naming.target import Target
from keras_trainops.restoring.sources import ModelCheckpoint
from keras_trainops.weight_names import NamedWeight, named_weights, walk_of

T = TypeVar("T")


class NameTable:
    """The variables of a model, by every name that a checkpoint may use for them.

    For a Keras weights file, the names under which such a file would store the model's variables
    take precedence: they rest on the position of a variable in its layer. If the source is a
    model, all names are known on both sides. Any other source has one name per variable, which may
    be its path, with or without the model's own name, or consist of the names of its owners.

    Args:
        model: A built model.
        checkpoint: The source.

    Attributes:
        targets: One record per variable, in the model's order.
    """

    def __init__(self, model: keras.Model, checkpoint: Checkpoint) -> None:
        self._checkpoint, self._name = checkpoint, model.name
        walk = walk_of(model)
        self.targets = [Target(weight) for weight in named_weights(model, walk)]
        self._spelled: dict[str, list[Target]] = defaultdict(list)
        for target in self.targets:
            for name in target.weight.spellings:
                self._spelled[name].append(target)
        self._stored: dict[str, list[Target]] = defaultdict(list)
        if isinstance(checkpoint, KerasWeightsCheckpoint):
            self._add_stored_names(walk or keras_private.saving_walk(model), checkpoint)

    def _add_stored_names(
        self, walk: keras_private.SavingWalk, checkpoint: KerasWeightsCheckpoint
    ) -> None:
        by_id = {id(target.variable): target for target in self.targets}
        for name, variable in names_in_weights_file(walk, checkpoint):
            if variable in by_id:
                self._stored[name].append(by_id[variable])
                by_id[variable].stored_as.add(name)

    def pattern_for(self, target: Target) -> str:
        """Return a pattern that matches one variable only: its short path, or the whole path."""
        alone = self._path_counts[target.short_path] == 1
        return re.escape(target.short_path) if alone else paths.exact_pattern(target.path)

    @functools.cached_property
    def _path_counts(self) -> Counter[str]:
        """The number of paths that contain a run of components; only needed for hints."""
        counts: Counter[str] = Counter()
        for target in self.targets:
            counts.update(paths.runs(target.path))
        return counts

    @functools.cached_property
    def _certain(self) -> dict[str, list[Target]]:
        """Variables of names that need no comparison: in weights files and equally built models."""
        if not isinstance(self._checkpoint, ModelCheckpoint):
            return self._stored
        theirs = {weight.owners: key for key, weight in self._checkpoint.weights.items()}
        ours = {target.weight.owners: target for target in self.targets}
        if theirs.keys() != ours.keys():
            return {}
        return {key: [ours[owners]] for owners, key in theirs.items()}

    def find(self, name: str) -> list[Target]:
        """Return the variables of this name: none, one, or several if it is ambiguous."""
        if name in self._stored or name in self._spelled:
            return self._stored.get(name) or self._spelled[name]
        return self._counted.get(name, []) if "#" in name else []

    @functools.cached_property
    def _counted(self) -> dict[str, list[Target]]:
        found: dict[str, list[Target]] = defaultdict(list)
        for name, target in counted_names({t.short_path: t for t in self.targets}).items():
            found[name].append(target)
        return found

    def find_by_meaning(self, layer: str, meaning: Meaning) -> list[Target]:
        """Return the variables of a layer with a meaning, such as its bias."""
        return self._by_meaning.get((layer, meaning), [])

    @functools.cached_property
    def _by_meaning(self) -> dict[tuple[str, Meaning], list[Target]]:
        found: dict[tuple[str, Meaning], list[Target]] = defaultdict(list)
        for name, targets in itertools.chain(self._spelled.items(), self._counted.items()):
            layer, leaf, meaning = split_name(name)
            if leaf and name == f"{layer}/{leaf}":
                known = found[layer, meaning]
                known += [target for target in targets if target not in known]
        return found

    def pair(self, names: Iterable[str], taken: Iterable[Target] = ()) -> Pairing:
        """Pair all names of a source with variables.

        Args:
            names: The names, some of which may refer to training state.
            taken: Variables that already have a key.
        """
        names, taken = list(dict.fromkeys(names)), set(taken)
        certain = {name: self._certain[name] for name in names if name in self._certain}
        candidates: list[Match] = []
        for name in names:
            if name not in certain:
                candidates += [c for c in self._candidates(name) if c.target not in taken]
        weights = [name for name in names if name not in self._checkpoint.training_state]
        return pair(weights, candidates, certain)

    def _candidates(self, name: str) -> Iterable[Match]:
        if isinstance(self._checkpoint, ModelCheckpoint) and name in self._checkpoint.weights:
            weight = self._checkpoint.weights[name]
            return self._with_shared_names(name, weight, self._checkpoint.model.name)
        return [by_spelling(name, target) for target in self._spelled.get(name, ())]

    def _with_shared_names(
        self, name: str, source: NamedWeight, model_name: str
    ) -> Iterable[Match]:
        """Yield the variables that share names with a variable of another model.

        Args:
            name: The name to pair.
            source: The variable of the other model.
            model_name: The name of the other model.
        """
        rooted = {f"{model_name}/{owner}" for owner in source.owners}
        below = {owner.removeprefix(f"{self._name}/") for owner in source.owners}
        near: dict[Target, None] = {}
        for spelling in sorted(source.spellings | rooted | below):
            near.update(dict.fromkeys(self._spelled.get(spelling, ())))
        for target in near:
            weight = target.weight
            by_owners = not set(weight.owners).isdisjoint(source.owners)
            inside = not rooted.isdisjoint(weight.owners) or any(
                f"{self._name}/{owner}" in source.owners for owner in weight.owners
            )
            same = [a == b for a, b in zip(weight.own_paths, source.own_paths, strict=True)]
            strength = sum([by_owners, inside, *same])
            if strength:
                partial = strength == 1 and not by_owners
                yield Match(name, target, (1, strength), by_owners, partial)


def counted_names(named: Mapping[str, T]) -> dict[str, T]:
    """Return names in which layers with automatic numbers are counted within their owner.

    The number of `norm_7` depends on what was created before it. As the second `norm` in its block
    it is `norm#2`, in every block.

    Args:
        named: Anything by path.

    Example:
        >>> [*counted_names({"block_1/norm_6/scale": 1, "block_1/norm_7/scale": 2})]
        ['block_1/norm#1/scale', 'block_1/norm#2/scale']
    """
    ranks: dict[str, dict[str, int]] = {}
    counted: dict[str, T] = {}
    for path, entry in named.items():
        parts = path.split("/")
        is_automatic = numbering.stem(parts[-1]) == "variable"
        for depth in range(1, len(parts) if is_automatic else len(parts) - 1):
            above, stem = "/".join(parts[:depth]), numbering.stem(parts[depth])
            of_kind = ranks.setdefault(f"{above}/{stem}", {})
            rank = of_kind.setdefault(path.split("/")[depth], len(of_kind) + 1)
            parts[depth] = f"{stem}#{rank}"
        counted["/".join(parts)] = entry
    return counted


def counted_paths(named: Mapping[str, T]) -> dict[str, T]:
    """Return names as `counted_names` does, with the layers of the model itself counted too.

    Example:
        >>> [*counted_paths({"dense_3/kernel": 1, "dense_4/kernel": 2})]
        ['dense#1/kernel', 'dense#2/kernel']
    """
    below = counted_names({f"/{path}": entry for path, entry in named.items()})
    return {name.removeprefix("/"): entry for name, entry in below.items()}


def names_in_weights_file(
    walk: keras_private.SavingWalk, checkpoint: KerasWeightsCheckpoint
) -> list[tuple[str, int]]:
    """Return (key, `id(variable)`) as the reader would name what a model's saving walk stores."""
    stored = [
        StoredVariable(group, key, tuple(getattr(value, "shape", ())))
        for group, key, value in walk.entries
    ]
    keys = checkpoint.keys_of_model(stored, walk.owners)
    return [(keys[group, key], id(value)) for group, key, value in walk.entries]
