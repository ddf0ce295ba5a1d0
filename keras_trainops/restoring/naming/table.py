"""By which names a checkpoint's keys address the variables of a model."""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import keras

from keras_trainops import keras_private
from keras_trainops.adapt.suggestion import Hints
from keras_trainops.checkpoints.checkpoint import Checkpoint
from keras_trainops.checkpoints.formats.keras.weights import KerasWeightsCheckpoint, StoredVariable
from keras_trainops.restoring.naming.pairing import Candidate, Pairing, pair, strength_of_name
from keras_trainops.restoring.sources import ModelCheckpoint
from keras_trainops.weight_names import NamedWeight


class NameTable:
    """Finds the variable that a name in a checkpoint, or in a rename rule, stands for.

    The names a weights file would give the model's variables come first where the source is such a
    file, as they are true to the position of a variable in its layer. Of a model all names are
    known on both sides. Any other source has one name for a variable, which may be its path, with
    or without the model's own name, or made of its owners' names.

    Attributes:
        weights: The model's variables with all their names, by position.
        paths: The variables' paths, by position.
        short_paths: The same without the model's own name.
        hints: What would make tensors fit the variables.
        stored_as: The names under which a weights file would store each position: several where
            layers share the variable, as tied embeddings do.
    """

    def __init__(
        self, model: keras.Model, weights: Sequence[NamedWeight], checkpoint: Checkpoint
    ) -> None:
        self.weights, self._checkpoint, self._name = weights, checkpoint, model.name
        self.hints = Hints(model)
        self.paths = [weight.path for weight in weights]
        self.short_paths = [weight.short for weight in weights]
        self._spelled = _table((s, i) for i, weight in enumerate(weights) for s in weight.spellings)
        self.stored_as: dict[int, set[str]] = defaultdict(set)
        if isinstance(checkpoint, KerasWeightsCheckpoint):
            position = {id(weight.variable): i for i, weight in enumerate(weights)}
            for name, i in names_in_weights_file(model, checkpoint):
                if i in position:
                    self.stored_as[position[i]].add(name)
        self._stored = _table((name, i) for i, names in self.stored_as.items() for name in names)

    def pattern_for(self, position: int) -> str:
        """A pattern that matches this variable alone: its short path, or if need be the whole."""
        short = self.short_paths[position]
        alone = self._paths_with[short] == 1
        return re.escape(short) if alone else f"^{re.escape(self.paths[position])}$"

    @functools.cached_property
    def _certain(self) -> dict[str, list[int]]:
        """Names that need no comparison: of a weights file, and of a model built like this one."""
        if not isinstance(self._checkpoint, ModelCheckpoint):
            return self._stored
        theirs = {weight.owners: key for key, weight in self._checkpoint.weights.items()}
        ours = {weight.owners: i for i, weight in enumerate(self.weights)}
        if theirs.keys() != ours.keys():
            return {}
        return {key: [ours[owners]] for owners, key in theirs.items()}

    @functools.cached_property
    def _paths_with(self) -> Counter[str]:
        """In how many paths consecutive components stand; looked at where something is wrong."""
        counts: Counter[str] = Counter()
        for path in self.paths:
            parts = path.split("/")
            ends = range(1, len(parts) + 1)
            counts.update({"/".join(parts[start:end]) for end in ends for start in range(end)})
        return counts

    def find(self, name: str) -> list[int]:
        """Positions of the variables named so: none, one, or several where it is ambiguous."""
        return self._stored.get(name) or self._spelled.get(name, [])

    def pair(self, names: Iterable[str], taken: Iterable[int] = ()) -> Pairing:
        """Brings all names of a source together with the variables that are not taken already."""
        names, taken = list(dict.fromkeys(names)), set(taken)
        candidates: list[Candidate] = []
        certain = {name: self._certain[name] for name in names if name in self._certain}
        for name in names:
            source = self._named_source(name)
            if name in certain:
                continue
            if source is None:
                found = self._spelled.get(name, ())
                candidates += [strength_of_name(name, i, self.weights[i]) for i in found]
            else:
                candidates += self._alike(name, *source)
        weights = [name for name in names if name not in self._checkpoint.training_state]
        return pair(weights, [c for c in candidates if c.position not in taken], certain)

    def kinds_of_names(self, keys: Sequence[str]) -> list[tuple[list[str], list[str]]]:
        """Names of all variables, and names of `keys`, that are of one kind each time.

        A weights file and a model are known to have names of owners; of others it is not known.
        """
        by_owners = [weight.owners[0] for weight in self.weights]
        if isinstance(self._checkpoint, ModelCheckpoint):
            theirs = self._checkpoint.weights
            return [(by_owners, [theirs[k].owners[0] if k in theirs else k for k in keys])]
        if self.stored_as:
            stored = [min(self.stored_as[i] or {name}) for i, name in enumerate(self.short_paths)]
            return [(stored, list(keys))]
        kinds = [self.short_paths, by_owners]
        return [(names, list(keys)) for names in (kinds if kinds[0] != kinds[1] else kinds[:1])]

    def _named_source(self, name: str) -> tuple[NamedWeight, str] | None:
        if not isinstance(self._checkpoint, ModelCheckpoint):
            return None
        weight = self._checkpoint.weights.get(name)
        return None if weight is None else (weight, self._checkpoint.model.name)

    def _alike(self, name: str, source: NamedWeight, model_name: str) -> Iterable[Candidate]:
        """The variables that have names in common with a variable of another model."""
        rooted = {f"{model_name}/{owner}" for owner in source.owners}
        spellings = source.spellings | rooted
        below = {s.removeprefix(f"{self._name}/") for s in source.owners}
        near = {i for s in spellings | below for i in self._spelled.get(s, ())}
        for i in sorted(near):
            target = self.weights[i]
            by_owners = not set(target.owners).isdisjoint(source.owners)
            inside = not rooted.isdisjoint(target.owners) or any(
                f"{self._name}/{owner}" in source.owners for owner in target.owners
            )
            paths = [a == b for a, b in zip(target.own_paths, source.own_paths, strict=True)]
            strength = sum([by_owners, inside, *paths])
            if strength:
                yield Candidate(name, i, (1, strength), by_owners, strength == 1 and not by_owners)


def _table(entries: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    table: dict[str, list[int]] = defaultdict(list)
    for name, position in entries:
        table[name].append(position)
    return dict(table)


def names_in_weights_file(
    model: keras.Model, checkpoint: KerasWeightsCheckpoint
) -> list[tuple[str, int]]:
    """(key, `id(variable)`) as the reader would name them, were the model saved now."""
    walk = keras_private.saving_walk(model)
    stored = [
        StoredVariable(group, key, tuple(getattr(value, "shape", ())))
        for group, key, value in walk.entries
    ]
    keys = checkpoint.keys_of_model(stored, walk.owners)
    return [(keys[group, key], id(value)) for group, key, value in walk.entries]
