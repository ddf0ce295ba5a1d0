"""Updates that layers make themselves, such as batch-norm statistics."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainops import paths
from keras_trainops.representation import CallRepr
from keras_trainops.state import BoundToModel


@keras.saving.register_keras_serializable(package="keras_trainops")
class LayerUpdates(CallRepr, BoundToModel):
    """Represents the layers' own updates, or some of them, in a list of updates.

    Layers make these updates in the forward pass, so there is nothing to run after the weight
    update.

    Args:
        include: Patterns (see `keras_trainops.paths`) of the weights whose updates run; None: all.
        exclude: Patterns of the weights whose updates do not run, even if `include` matches.

    Raises:
        ValueError: At the first build, if a pattern matches no weight of the model.

    Example:
        >>> import keras_trainops as kt
        >>> only_decoder = kt.updates.LayerUpdates(include=["decoder/.*"])

    References: `tf.GraphKeys.UPDATE_OPS`.
    """

    argument = "compile(updates=...)"

    def __init__(self, include: paths.Patterns = None, exclude: paths.Patterns = None) -> None:
        self.include, self.exclude = include, exclude
        self._chosen: set[int] = set()

    @property
    def name(self) -> str:
        """The name of the object in messages."""
        return type(self).__name__

    def build(self, model: keras.Model) -> None:
        """Choose the weights of a model.

        Raises:
            ValueError: If a pattern matches no weight.
        """
        named = paths.by_path(model.weights)
        included = paths.select(self.include, named)
        excluded = paths.select(self.exclude, named)
        everything = self.include is None
        self._chosen = {
            id(variable)
            for (_, variable), yes, no in zip(named, included, excluded, strict=True)
            if (everything or yes) and not no
        }

    def chooses(self, variable: keras.Variable) -> bool:
        """Return whether a layer's own update of `variable` runs."""
        return id(variable) in self._chosen

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as Keras serialises them."""
        return {
            "include": paths.serializable(self.include),
            "exclude": paths.serializable(self.exclude),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LayerUpdates:
        """Create the object from its constructor's arguments."""
        return cls(**config)
