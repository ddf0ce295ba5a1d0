"""Find the variable that a name in a checkpoint, or in a rename rule, refers to."""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import keras

from keras_trainops import keras_private, paths
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats.keras.naming import StoredVariable
from keras_trainops.checkpoints.formats.keras.weights import KerasWeightsCheckpoint
from keras_trainops.restoring.naming.pairing import Match, Pairing, by_spelling, pair
from keras_trainops.restoring.naming.target import Target
from keras_trainops.restoring.sources import ModelCheckpoint
from keras_trainops.weight_names import NamedWeight, named_weights


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
        self.targets = [Target(weight) for weight in named_weights(model)]
        self._spelled: dict[str, list[Target]] = defaultdict(list)
        for target in self.targets:
            for name in target.weight.spellings:
                self._spelled[name].append(target)
        self._stored: dict[str, list[Target]] = defaultdict(list)
        if isinstance(checkpoint, KerasWeightsCheckpoint):
            self._add_stored_names(model, checkpoint)

    def _add_stored_names(self, model: keras.Model, checkpoint: KerasWeightsCheckpoint) -> None:
        by_id = {id(target.variable): target for target in self.targets}
        for name, variable in names_in_weights_file(keras_private.saving_walk(model), checkpoint):
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
        return self._stored.get(name) or self._spelled.get(name, [])

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

    def comparable_names(self, keys: Sequence[str]) -> list[tuple[list[str], list[str]]]:
        """Return names of all variables and of `keys` that are alike enough to be compared.

        Weights files and models have names of owners. Other sources may have either kind.

        Returns:
            One pair of lists per kind of names.
        """
        by_owners = [target.weight.owners[0] for target in self.targets]
        if isinstance(self._checkpoint, ModelCheckpoint):
            return [(by_owners, _owner_names(self._checkpoint, keys))]
        if self._stored:
            stored = [min(target.stored_as or {target.short_path}) for target in self.targets]
            return [(stored, list(keys))]
        short_paths = [target.short_path for target in self.targets]
        kinds = [short_paths] if short_paths == by_owners else [short_paths, by_owners]
        return [(names, list(keys)) for names in kinds]


def _owner_names(source: ModelCheckpoint, keys: Sequence[str]) -> list[str]:
    return [source.weights[key].owners[0] if key in source.weights else key for key in keys]


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
