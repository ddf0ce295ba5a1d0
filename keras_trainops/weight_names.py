"""Unique names for the weights of a model.

A weight's own Keras path may not be unique. A functional model inside another one keeps its paths
(`dense/kernel`), so they repeat, or equal the path of a direct layer without the model's name
(`net/dense/kernel`). The names of a weight's owners, from below the model down to the layer, are
unique: `backbone/dense/kernel`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import keras

from keras_trainops import keras_private
from keras_trainops.checkpoints.formats.keras.naming import owner_prefixes
from keras_trainops.paths import NamedVariable

T = TypeVar("T")


class NamedWeight(NamedTuple):
    """A weight of a model and its names.

    Attributes:
        variable: The weight.
        path: The unique path that addresses the weight and appears in reports.
        short: The unique path without the model's own name.
        owners: Unique names made of the owners' names (`backbone/dense/kernel`); several if layers
            share the weight.
        own_paths: Keras's path with and without the model's name. They may not be unique.
    """

    variable: keras.Variable
    path: str
    short: str
    owners: tuple[str, ...]
    own_paths: tuple[str, str]

    @property
    def spellings(self) -> frozenset[str]:
        """All names of the weight."""
        return frozenset({self.path, self.short, *self.owners, *self.own_paths})


def walk_of(model: keras.Model) -> keras_private.SavingWalk | None:
    """Return Keras's saving walk; None if it fails, as variables still have their paths then."""
    try:
        return keras_private.saving_walk(model)
    except Exception:  # a user's layer may not support saving
        return None


def named_weights(
    model: keras.Model, walk: keras_private.SavingWalk | None = None
) -> list[NamedWeight]:
    """Return the weights of a model with all their names.

    A weight whose own path could also mean another weight is addressed by its owners instead
    (`encoder/dense/kernel`, `decoder/dense/kernel`). Owners that share a name are numbered
    (`dense#2/kernel`). Weights of one layer that share a name are numbered by position (`dense/0`,
    `dense/1`). Random seeds and metrics are left out.

    Args:
        model: The model.
        walk: The result of `walk_of`, if it is known.

    Raises:
        ValueError: If two weights get the same name.
    """
    weights = _weights_with_own_paths(model, walk or walk_of(model))
    claims: Counter[str] = Counter()
    for weight in weights:
        claims.update(weight.spellings)
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
    """Return the weights of a model, each under its unique path."""
    return [NamedVariable(weight.path, weight.variable) for weight in named_weights(model)]


def unique(entries: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Return a dictionary of the entries.

    Raises:
        ValueError: If two entries have the same name.
    """
    table: dict[str, T] = {}
    for name, entry in entries:
        if name in table:
            raise ValueError(f"Two variables have the name {name!r}, so it is ambiguous.")
        table[name] = entry
    return table


def _weights_with_own_paths(
    model: keras.Model, walk: keras_private.SavingWalk | None
) -> list[NamedWeight]:
    owners = {} if walk is None else _owner_names(model, walk)
    weights = []
    for i, variable in enumerate(model.weights):
        own = (variable.path, variable.path.removeprefix(f"{model.name}/"))
        names = tuple(owners.get(id(variable), [f"{variable.path}#{i}"]))
        weights.append(NamedWeight(variable, own[0], own[1], names, own))
    return weights


def _owner_names(model: keras.Model, walk: keras_private.SavingWalk) -> dict[int, list[str]]:
    """Return unique names made of the owners' names, by `id(variable)`."""
    layers = [layer for layer in keras_private.all_layers(model) if id(layer) in walk.groups]
    own = {id(layer): keras_private.own_variables(layer) for layer in layers}
    # Groups without variables are in no file, so they do not count when layers share a name.
    groups = {walk.groups[layer] for layer, variables in own.items() if variables}
    prefixes = owner_prefixes(groups, walk.owners)
    names: dict[int, list[str]] = defaultdict(list)
    for layer, variables in own.items():
        prefix = prefixes.get(walk.groups[layer], "")
        for variable, leaf in zip(variables, _leaf_names(variables), strict=True):
            names[id(variable)].append(f"{prefix}{leaf}")
    return names


def _leaf_names(variables: Sequence[keras.Variable]) -> list[str]:
    """Return the names of variables in their layer, with positions in place of repeated names."""
    counts = Counter(variable.name for variable in variables)
    return [
        variable.name if counts[variable.name] == 1 else str(position)
        for position, variable in enumerate(variables)
    ]
