"""The names by which a model's weights are told apart.

Keras's path need not be a weight's own. A functional model within another keeps its paths
(`dense/kernel`): they repeat, or are what remains of the path of a direct layer once the model's
name is taken away (`net/dense/kernel`). The names of a weight's owners, from the model (left out)
down to the layer, belong to it alone: `backbone/dense/kernel`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import keras

from keras_trainops import keras_private
from keras_trainops.checkpoints.formats.keras.weights import owner_prefixes
from keras_trainops.paths import NamedVariable

T = TypeVar("T")


class NamedWeight(NamedTuple):
    """A weight of a model, and what it may be called.

    Attributes:
        variable: The weight, which is what tells it from others.
        path: The path by which it is addressed and reported; no other weight has it.
        short: The same without the model's own name; no other weight has it.
        owners: Its name behind its owners' (`backbone/dense/kernel`), which no other weight has;
            several where layers share it.
        own_paths: Keras's path with and without the model's name, which other weights may have.
    """

    variable: keras.Variable
    path: str
    short: str
    owners: tuple[str, ...]
    own_paths: tuple[str, str]

    @property
    def spellings(self) -> frozenset[str]:
        """All of these."""
        return frozenset({self.path, self.short, *self.owners, *self.own_paths})


def named_weights(model: keras.Model) -> list[NamedWeight]:
    """The weights of `model` under all their names.

    A weight whose own path another could be meant by, too, is addressed by its owners instead
    (`encoder/dense/kernel`, `decoder/dense/kernel`), which are numbered where they share a name
    (`dense#2/kernel`); two of one layer by their position (`dense/0`, `dense/1`). Random seeds and
    metrics are no weights.
    """
    owners = _owner_names(model)
    weights = []
    for i, variable in enumerate(model.weights):
        own = (variable.path, variable.path.removeprefix(f"{model.name}/"))
        names = tuple(owners.get(id(variable), [f"{variable.path}#{i}"]))
        weights.append(NamedWeight(variable, own[0], own[1], names, own))
    claims = Counter(name for weight in weights for name in weight.spellings)
    named = [
        weight._replace(
            path=weight.path if claims[weight.path] == 1 else weight.owners[0],
            short=weight.short if claims[weight.short] == 1 else weight.owners[0],
        )
        for weight in weights
    ]
    unique((weight.path, None) for weight in named)
    unique((weight.short, None) for weight in named)
    return named


def model_weights(model: keras.Model) -> list[NamedVariable]:
    """The weights of `model`, each under the path by which it is addressed and reported."""
    return [NamedVariable(weight.path, weight.variable) for weight in named_weights(model)]


def unique(entries: Iterable[tuple[str, T]]) -> dict[str, T]:
    """A dictionary of entries, none of which may overwrite another.

    Raises:
        ValueError: If two have one name.
    """
    table: dict[str, T] = {}
    for name, entry in entries:
        if name in table:
            raise ValueError(f"Two variables have the name {name!r}, and cannot be told apart.")
        table[name] = entry
    return table


def _owner_names(model: keras.Model) -> dict[int, list[str]]:
    """Names made of the owners', by the `id` of the variable; all are different."""
    try:
        walk = keras_private.saving_walk(model)
    except Exception:  # a layer of the user's may refuse to be saved, but is to be restored
        return {}
    layers = [layer for layer in keras_private.all_layers(model) if id(layer) in walk.groups]
    own = {id(layer): keras_private.own_variables(layer) for layer in layers}
    # Groups without variables are in no file, and so do not count where layers share their names.
    groups = {walk.groups[layer] for layer, variables in own.items() if variables}
    prefixes = owner_prefixes(groups, walk.owners)
    found: dict[int, list[str]] = {}
    for layer, variables in own.items():
        prefix = prefixes.get(walk.groups[layer], "")
        count = Counter(variable.name for variable in variables)
        for position, variable in enumerate(variables):
            leaf = variable.name if count[variable.name] == 1 else str(position)
            found.setdefault(id(variable), []).append(f"{prefix}{leaf}")
    return found
