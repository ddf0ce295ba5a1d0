"""By which names a checkpoint's keys address the variables of a model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import keras

from keras_trainops import _keras
from keras_trainops.paths import NamedVariable, by_path
from keras_trainops.readers.base import Checkpoint
from keras_trainops.readers.keras_weights import (
    KerasWeightsCheckpoint,
    StoredVariable,
    owner_chain,
    variable_keys,
)


def model_weights(model: keras.Model) -> list[NamedVariable]:
    """The weights of `model`, each under a path of its own wherever its owner tells it apart.

    Two variables with one path (`dense/kernel` in two nested functional models) are named by
    their owners instead (`encoder/dense/kernel`, `decoder/dense/kernel`). Random seeds and
    metrics are no weights.
    """
    named = by_path(model.weights)
    counts = Counter(path for path, _ in named)
    if max(counts.values(), default=0) < 2:
        return named
    walk = _keras.saving_walk(model)
    owners = {id(value): owner_chain(group, walk.owners) for group, _, value in walk.entries}
    return [
        NamedVariable(f"{owners[id(v)]}{v.name}", v)
        if counts[path] > 1 and id(v) in owners
        else NamedVariable(path, v)
        for path, v in named
    ]


def without_model_name(path: str, model: keras.Model) -> str:
    """`path` without the model's own name in front, which differs from run to run."""
    return path.removeprefix(f"{model.name}/")


class NameTable:
    """Finds the variable that a name in a checkpoint, or in a rename rule, stands for.

    The names a weights file would give the model's variables come first where the source is such a
    file, as they are true to the position of a variable in its layer; then paths, with or without
    the model's own name.
    """

    def __init__(
        self, model: keras.Model, named: Sequence[NamedVariable], checkpoint: Checkpoint
    ) -> None:
        position = {id(variable): i for i, (_, variable) in enumerate(named)}
        self.paths = [path for path, _ in named]
        self._tables = [
            _table((path, i) for i, path in enumerate(self.paths)),
            _table((variable.path, i) for i, (_, variable) in enumerate(named)),
            _table((without_model_name(path, model), i) for i, path in enumerate(self.paths)),
        ]
        if isinstance(checkpoint, KerasWeightsCheckpoint):
            file_names = _names_in_weights_file(model)
            self._tables.insert(
                0, _table((name, position[i]) for name, i in file_names if i in position)
            )

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


def _names_in_weights_file(model: keras.Model) -> list[tuple[str, int]]:
    """(key, `id(variable)`) as the reader would name them, were the model saved now."""
    walk = _keras.saving_walk(model)
    stored = [
        StoredVariable(group, key, tuple(getattr(value, "shape", ())))
        for group, key, value in walk.entries
    ]
    keys = variable_keys(stored, walk.owners)
    return [(keys[group, key], id(value)) for group, key, value in walk.entries]
