"""Another model as the source of a restore."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import keras
import numpy as np

from keras_trainops import keras_private
from keras_trainops.backends import backend
from keras_trainops.checkpoints.formats.arrays import VariablesCheckpoint
from keras_trainops.checkpoints.storage.parts import Index, aligned_copy
from keras_trainops.errors import RestoreError
from keras_trainops.restoring.spread import is_spread
from keras_trainops.values import copy_of
from keras_trainops.weight_names import NamedWeight, named_weights, unique


class ModelCheckpoint(VariablesCheckpoint):
    """The weights of a model and, on request, the state of its optimizer.

    Args:
        model: A built model.
        optimizers: The optimizers whose state to include, by name; "" for the only one.
        copied: If True, all values are copied at once, because they are about to be overwritten.

    Attributes:
        model: The model.
        weights: Each weight with all its names, by key.
        optimizers: The optimizers by name.
        slots: The key of each optimizer slot, by the weight's key and the optimizer's attribute.
        counters: The key of each optimizer's step count, by the optimizer's name.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizers: Mapping[str, keras.optimizers.Optimizer] = MappingProxyType({}),
        copied: bool = False,
    ) -> None:
        self.model = model
        self.weights: Mapping[str, NamedWeight] = unique((w.short, w) for w in named_weights(model))
        self.optimizers = optimizers
        self.counters: dict[str, str] = {}
        self.slots: dict[tuple[str, str], str] = {}
        state: dict[str, keras.Variable] = {}
        for name, optimizer in optimizers.items():
            # Paths repeat if weights share a path.
            start = f"optimizer/{name}/" if name else "optimizer/"
            keys = {id(v): f"{start}{i}/{v.path}" for i, v in enumerate(optimizer.variables)}
            state.update({keys[id(v)]: v for v in optimizer.variables})
            self.counters[name] = keys[id(optimizer.iterations)]
            self.slots.update(_slots(optimizer, self.weights, keys))
        entries = [(key, weight.variable) for key, weight in self.weights.items()]
        entries += state.items()
        if copied:
            entries = [(key, _copied(variable)) for key, variable in entries]
        super().__init__(entries, f"model {model.name}", _value_of, state)

    def _read_part(self, key: str, index: Index) -> np.ndarray:
        value = self._variables[key]
        is_copy = isinstance(value, np.ndarray)
        return aligned_copy(value[index] if is_copy else backend().host_part(value, index))


def _copied(variable: keras.Variable) -> Any:
    """Return a copy of a variable's value; if it is spread over processes, it stays so."""
    return backend().snapshot(variable) if is_spread(variable) else copy_of(variable)


def _value_of(source: Any) -> np.ndarray:
    """Return a copy of the value of a variable, or of what `_copied` returned.

    Raises:
        RestoreError: If this process has only a part of it.
    """
    if isinstance(source, np.ndarray):
        return np.copy(source)
    tensor = getattr(source, "value", source)
    if not backend().is_whole(tensor):
        raise RestoreError(
            f"A variable of shape {tuple(tensor.shape)} of the source model is divided among "
            "several processes, so no process can read all of it, as adapters and other layouts "
            "need. Write the model with `keras_trainops.write_back`, or with "
            "`keras.callbacks.OrbaxCheckpoint`, and restore that."
        )
    return np.array(backend().on_host(keras.ops.convert_to_tensor(tensor)))


def _slots(
    optimizer: keras.optimizers.Optimizer,
    weights: Mapping[str, NamedWeight],
    keys: Mapping[int, str],
) -> dict[tuple[str, str], str]:
    """Return the key of each slot, by the key of its weight and the optimizer's attribute.

    Args:
        optimizer: The optimizer.
        weights: The weights by key.
        keys: The keys of the optimizer's variables by `id`.
    """
    if not optimizer.built:
        return {}
    key_of = {id(weight.variable): key for key, weight in weights.items()}
    return {
        (key_of[id(slot.weight)], slot.attribute): keys[id(slot.variable)]
        for slot in keras_private.slots(optimizer)
        if id(slot.variable) in keys and id(slot.weight) in key_of
    }


def shares_variables(source: keras.Model, target: Any) -> bool:
    """Return True if the models have a variable in common."""
    own: Iterable[Any] = getattr(target, "weights", ())
    ids = {id(variable) for variable in own}
    return any(id(variable) in ids for variable in source.weights)
