"""The protocol of updates.

An *update* is a non-gradient change of state in a training step: batch-norm statistics, averages,
whatever a user registers. (optax calls the transformed gradients updates; we never do.)
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import keras


class Update:
    """Base class of updates that run after the weight update: subclass it, or pass a function."""

    def build(self, model: keras.Model) -> None:
        """Checks the update against the model, before its first step.

        Raises:
            ValueError: If it does not fit the model.
        """

    @abstractmethod
    def __call__(self, model: keras.Model, loss: Any) -> None:
        """Assigns whatever it assigns, with `keras.ops`, inside the training step.

        Args:
            model: The model in training.
            loss: The step's loss, a scalar tensor (unscaled).
        """

    @property
    def name(self) -> str:
        """How messages name the update."""
        return type(self).__name__

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as Keras serialises them."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Update:
        """The update with these constructor arguments."""
        return cls(**config)


def as_update(value: Any) -> Update:
    """An update out of what users pass as one: an `Update` or a callable.

    Raises:
        ValueError: If it is neither.
    """
    from keras_trainops.updates.functions import Function

    if isinstance(value, Update):
        return value
    if callable(value) and not isinstance(value, type):
        return Function(value)
    raise ValueError(
        "An update must be an `Update` (see `keras_trainops.updates`) or a callable "
        f"`fn(model, loss)`. Received: {value!r}"
    )
