"""State of a model that is saved with its optimizer: that of updates, and the seeds of layers."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_trainops import keras_private
from keras_trainops.state import Stateful
from keras_trainops.values import copy_of

# Prefixes of keys that are saved next to the optimizer's own variables.
_SEED, _UPDATE = "seed_", "update_"


class ModelState:
    """The state of a model's updates and the seeds of its layers, which Keras does not save."""

    def __init__(self) -> None:
        self._attached: Any = None
        self._updates = Stateful()
        self._awaited: list[np.ndarray] = []

    @property
    def model(self) -> Any:
        """The model; None if there is none, or it does not exist any more."""
        return None if self._attached is None else self._attached()

    def attach(self, model: Any) -> None:
        """Remember the model."""
        self._attached = weakref.ref(model)

    def track_updates(self, updates: Stateful) -> None:
        """Save and resume the state of updates.

        Values loaded before the updates existed are assigned now.
        """
        self._updates = updates
        if updates.variables and self._awaited:
            _assign_all(updates.variables, self._awaited)
            self._awaited = []

    def save(self, store: Any) -> None:
        """Store the state next to an optimizer's variables."""
        updates = list(self._awaited) or [copy_of(v) for v in self._updates.variables]
        for start, values in ((_SEED, map(copy_of, self._seeds())), (_UPDATE, updates)):
            for i, value in enumerate(values):
                store[f"{start}{i}"] = value

    def load(self, store: Any) -> None:
        """Load what `save` stored; seeds and updates may be absent."""
        keys = list(store.keys())

        def values(start: str) -> list[np.ndarray]:
            count = sum(key.startswith(start) and key[len(start) :].isdigit() for key in keys)
            return [np.asarray(store[f"{start}{i}"]) for i in range(count)]

        seeds, self._awaited = values(_SEED), values(_UPDATE)
        if len(seeds) == len(self._seeds()):
            _assign_all(self._seeds(), seeds)
        self.track_updates(self._updates)

    def _seeds(self) -> list[keras.Variable]:
        return [] if self.model is None else keras_private.seeds(self.model)


def _assign_all(variables: Sequence[keras.Variable], values: Sequence[np.ndarray]) -> None:
    """Assign values from a file, or none of them if the shapes differ."""
    if [tuple(v.shape) for v in variables] != [value.shape for value in values]:
        warnings.warn(
            f"The file has state for {len(values)} update variables, but the model has "
            f"{len(variables)}: the updates start from scratch.",
            stacklevel=2,
        )
        return
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
