"""The paths by which a model's weights are told apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import keras

from keras_trainops import _keras
from keras_trainops.paths import NamedVariable, by_path
from keras_trainops.readers.keras_weights import owner_prefixes


def model_weights(model: keras.Model) -> list[NamedVariable]:
    """The weights of `model`, each under a path of its own wherever its owner tells it apart.

    Two variables with one path (`dense/kernel` in two nested functional models) are named by
    their owners instead (`encoder/dense/kernel`, `decoder/dense/kernel`), which are numbered where
    they share a name (`dense#2/kernel`); two of one layer (`dense/0`, `dense/1`) by their position.
    Random seeds and metrics are no weights.
    """
    named = by_path(model.weights)
    if not _repeated(named):
        return named
    walk = _keras.saving_walk(model)
    prefixes = owner_prefixes((entry.group for entry in walk.entries), walk.owners)
    by_owner, by_position = {}, {}
    for group, key, value in walk.entries:
        by_owner[id(value)] = f"{prefixes[group]}{getattr(value, 'name', key)}"
        by_position[id(value)] = f"{prefixes[group]}{key}"
    for names in (by_owner, by_position):
        repeated = _repeated(named)
        named = [
            NamedVariable(names.get(id(v), path) if path in repeated else path, v)
            for path, v in named
        ]
    return named


def _repeated(named: Iterable[NamedVariable]) -> set[str]:
    return {path for path, count in Counter(path for path, _ in named).items() if count > 1}


def without_model_name(path: str, model: keras.Model) -> str:
    """`path` without the model's own name in front, which differs from run to run."""
    return path.removeprefix(f"{model.name}/")
