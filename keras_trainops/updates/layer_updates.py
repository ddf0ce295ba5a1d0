"""The updates that layers make themselves, such as batch-norm statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_trainops import paths
from keras_trainops.updates.base import Update


@keras.saving.register_keras_serializable(package="keras_trainops")
class LayerUpdates(Update):
    """Stands for the layers' own updates, or some of them, in a list of updates.

    Args:
        include: Patterns (see `keras_trainops.paths`) of the weights whose updates run; None: all.
        exclude: Patterns of the weights whose updates do not run.

    Raises:
        ValueError: At the first build, if a pattern matches no weight of the model.

    Example:
        >>> import keras_trainops as kt
        >>> only_decoder = kt.updates.LayerUpdates(include=["decoder/.*"])

    References: `tf.GraphKeys.UPDATE_OPS`.
    """

    def __init__(self, include: paths.Patterns = None, exclude: paths.Patterns = None) -> None:
        self.include, self.exclude = include, exclude
        self._chosen: set[int] = set()

    def build(self, model: keras.Model) -> None:
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
        """Whether a layer's own update of `variable` runs."""
        return id(variable) in self._chosen

    def __call__(self, model: keras.Model, loss: Any) -> None:
        """Nothing: the layers' updates were applied before the weight update."""

    def get_config(self) -> dict[str, Any]:
        return {
            "include": paths.serializable(self.include),
            "exclude": paths.serializable(self.exclude),
        }


class LayerUpdateScope(keras.StatelessScope):
    """Collects what layers assign during a forward pass, and writes nothing.

    Variables keep their values; inside the scope they read as what was assigned to them. Where a
    layer assigns a *trainable* variable (spectral normalisation does), the gradient reaches the
    variable as if it had held the new value all along, as when layers assign at once.

    Args:
        variables: All variables that the forward pass may read or assign.
    """

    def __init__(self, variables: Sequence[keras.Variable]) -> None:
        # Every variable is mapped: weight regularisers read the mapping, and fail where it is None.
        super().__init__([(v, v.value) for v in variables], collect_losses=True)
        self._assigned: dict[int, tuple[keras.Variable, Any]] = {}

    @property
    def assigned(self) -> list[tuple[keras.Variable, Any]]:
        """The assigned variables and their last values, in the order of their first assignment."""
        return list(self._assigned.values())

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        variable, value = update
        self._assigned[id(variable)] = update
        current = self.get_current_value(variable)
        if variable.trainable and current is not None:
            value = _take_value_keep_gradient(current, value)
        super().add_update((variable, value))


@keras.ops.custom_gradient
def _take_value_keep_gradient(current: Any, value: Any) -> Any:
    """`value`, with the gradient of `current`."""

    def gradient(*args: Any, upstream: Any = None) -> tuple[Any, Any]:
        if upstream is None:
            (upstream,) = args
        return upstream, keras.ops.zeros_like(upstream)

    return keras.ops.add(value, 0), gradient
