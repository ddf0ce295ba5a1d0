"""Updates made from plain functions, and the conversion of user arguments to updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras

from keras_trainops import keras_private
from keras_trainops.arguments import misplaced
from keras_trainops.updates.base import On, Update
from keras_trainops.updates.layer_updates import LayerUpdates

PolicyEntry: TypeAlias = "Update | LayerUpdates"
UpdateFn: TypeAlias = "Callable[[Any, Any], Any]"  # (model, loss); a user may name his own class
Updates: TypeAlias = "PolicyEntry | UpdateFn | Sequence[PolicyEntry | UpdateFn]"


@keras.saving.register_keras_serializable(package="keras_trainops")
class Function(Update):
    """Runs a function that assigns variables, after the weight update.

    Args:
        function: `fn(model, loss)`, which assigns variables with `keras.ops`; its result is not
            used. It is traced with the step, so Python side effects do not happen in every step.
            To be saved in a `.keras` file it must be registered with
            `keras.saving.register_keras_serializable`.
        variables: All Keras variables that it assigns, except the model's. They are saved and
            resumed with the optimizer.
        every: The number of weight updates or batches from one run to the next.
        on: `"update"` or `"batch"`, the unit of `every`; see `Update`.

    Raises:
        ValueError: If an argument is not valid; before training, if the function assigns any other
            variable, or a value of a different shape.

    Example:
        >>> import keras, keras_trainops as kt
        >>> steps = keras.Variable(0, trainable=False, dtype="int32")
        >>> count = kt.updates.Function(lambda model, loss: steps.assign(steps + 1), [steps])

    References: `update_ops` of `tf.contrib.training.create_train_op`.
    """

    def __init__(
        self,
        function: UpdateFn,
        variables: Sequence[keras.Variable] = (),
        every: int = 1,
        on: On = "update",
    ) -> None:
        super().__init__(every, on)
        if isinstance(function, dict):
            function = keras.saving.deserialize_keras_object(function)
        if not callable(function):
            raise ValueError(f"`function` must be callable. Received: {function!r}")
        if not all(isinstance(v, keras.Variable) for v in variables):
            raise ValueError(f"`variables` must be `keras.Variable`s. Received: {variables!r}")
        self.function = function
        self.use_as_state(variables)

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
        if self.variables:
            raise ValueError(
                f"The update {self.name!r} has its own variables, which a configuration cannot "
                "store. Write a subclass of `keras_trainops.updates.Update` that creates them in "
                "`build` with `add_variable`, or register it with `model.add_update` in the code "
                "that builds the model."
            )
        return {
            "function": keras_private.serialized_function(self.function),
            **super().get_config(),
        }


def as_update(value: Any, **options: Any) -> PolicyEntry:
    """Return a user's update, `LayerUpdates` or callable as an entry of an update policy.

    Args:
        value: The user's argument.
        **options: Arguments of `Function`, for a callable.

    Raises:
        ValueError: If `value` is none of them, or options are given without a callable.
    """
    if isinstance(value, (Update, LayerUpdates)):
        if options:
            raise ValueError(
                f"Only functions take options here (received: {', '.join(options)}). Pass them to "
                f"{value.name} itself."
            )
        return value
    why = misplaced(value)
    if why is None and callable(value):
        return Function(value, **options)
    raise ValueError(
        "An update must be an `Update` (see `keras_trainops.updates`) or a callable "
        "`fn(model, loss)`. " + (why or f"Received: {value!r}")
    )
