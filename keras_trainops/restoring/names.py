"""By which names a checkpoint's keys address the variables of a model."""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import keras

from keras_trainops import _keras
from keras_trainops.adapt.suggestion import Hints
from keras_trainops.naming import without_model_name
from keras_trainops.paths import NamedVariable
from keras_trainops.readers.base import Checkpoint
from keras_trainops.readers.keras_weights import KerasWeightsCheckpoint, StoredVariable


class NameTable:
    """Finds the variable that a name in a checkpoint, or in a rename rule, stands for.

    The names a weights file would give the model's variables come first where the source is such a
    file, as they are true to the position of a variable in its layer; then paths, with or without
    the model's own name.

    Attributes:
        paths: The variables' paths, by position.
        short_paths: The same without the model's own name.
        hints: What would make tensors fit the variables.
        stored_as: The names under which a weights file would store each position: several where
            layers share the variable, as tied embeddings do.
    """

    def __init__(
        self, model: keras.Model, named: Sequence[NamedVariable], checkpoint: Checkpoint
    ) -> None:
        position = {id(variable): i for i, (_, variable) in enumerate(named)}
        self.hints = Hints(model)
        self.paths = [path for path, _ in named]
        self.short_paths = [without_model_name(path, model) for path in self.paths]
        self._tables = [
            _table((path, i) for i, path in enumerate(self.paths)),
            _table((variable.path, i) for i, (_, variable) in enumerate(named)),
            _table((path, i) for i, path in enumerate(self.short_paths)),
        ]
        self.stored_as: dict[int, set[str]] = defaultdict(set)
        if isinstance(checkpoint, KerasWeightsCheckpoint):
            for name, i in _names_in_weights_file(model, checkpoint):
                if i in position:
                    self.stored_as[position[i]].add(name)
            self._tables.insert(
                0, _table((name, i) for i, names in self.stored_as.items() for name in names)
            )

    def pattern_for(self, position: int) -> str:
        """A pattern that matches this variable alone: its short path, or if need be the whole."""
        short = self.short_paths[position]
        alone = self._paths_with[short] == 1
        return re.escape(short) if alone else f"^{re.escape(self.paths[position])}$"

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
        for table in self._tables:
            if name in table:
                return table[name]
        return []


def _table(entries: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    table: dict[str, list[int]] = defaultdict(list)
    for name, position in entries:
        table[name].append(position)
    return dict(table)


def _names_in_weights_file(
    model: keras.Model, checkpoint: KerasWeightsCheckpoint
) -> list[tuple[str, int]]:
    """(key, `id(variable)`) as the reader would name them, were the model saved now."""
    walk = _keras.saving_walk(model)
    stored = [
        StoredVariable(group, key, tuple(getattr(value, "shape", ())))
        for group, key, value in walk.entries
    ]
    keys = checkpoint.keys_of_model(stored, walk.owners)
    return [(keys[group, key], id(value)) for group, key, value in walk.entries]
