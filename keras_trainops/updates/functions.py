"""Updates out of plain functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_trainops import _keras
from keras_trainops.updates.base import Update


@keras.saving.register_keras_serializable(package="keras_trainops")
class Function(Update):
    """Runs a function that assigns variables, after the weight update of every step.

    Args:
        function: `fn(model, loss)`, which assigns variables with `keras.ops`; its result is not
            used. It is traced with the step, so that Python side effects happen once. To be saved
            in a `.keras` file it must be registered with
            `keras.saving.register_keras_serializable`.

    Raises:
        ValueError: If `function` is not callable.

    Example:
        >>> import keras, keras_trainops as kt
        >>> steps = keras.Variable(0, trainable=False, dtype="int32")
        >>> count = kt.updates.Function(lambda model, loss: steps.assign(steps + 1))

    References: `update_ops` of `tf.contrib.training.create_train_op`.
    """

    def __init__(self, function: Callable[[keras.Model, Any], Any]) -> None:
        if isinstance(function, dict):
            function = keras.saving.deserialize_keras_object(function)
        if not callable(function):
            raise ValueError(f"`function` must be callable. Received: {function!r}")
        self.function = function

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Function) and other.function == self.function

    def __hash__(self) -> int:
        return hash(self.function)

    def __call__(self, model: keras.Model, loss: Any) -> None:
        self.function(model, loss)

    def get_config(self) -> dict[str, Any]:
        return {"function": _keras.serialized_function(self.function)}
