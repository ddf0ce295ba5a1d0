"""Values that users pass in the wrong place, and the advice to give them."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainops.state import BoundToModel

_KERAS_CLASSES = (
    keras.callbacks.Callback,
    keras.constraints.Constraint,
    keras.initializers.Initializer,
    keras.layers.Layer,
    keras.losses.Loss,
    keras.metrics.Metric,
    keras.optimizers.Optimizer,
    keras.optimizers.schedules.LearningRateSchedule,
    keras.regularizers.Regularizer,
)


def is_list(value: Any) -> bool:
    """Return whether `value` is a list or tuple, but not a named tuple."""
    return isinstance(value, (list, tuple)) and not hasattr(value, "_fields")


def misplaced(value: Any) -> str | None:
    """Explain why `value` cannot be a transform, an update or a function for one.

    Many such values are callable, and would pass as functions until the first step fails.

    Returns:
        A sentence for the error message; None if the value may be valid.
    """
    if isinstance(value, type):
        return f"{value.__name__!r} is a class: pass an instance, as in `{value.__name__}(...)`."
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return _about_named_tuple(value)
    if isinstance(value, BoundToModel) and value.argument:
        return f"It belongs in `{value.argument}`: {value!r}."
    return _about_keras_object(value)


def _about_named_tuple(value: Any) -> str:
    if value._fields == ("init", "update"):
        return (
            "This is an optax transform, which keeps its state outside of Keras's variables: "
            "use its counterpart in `keras_trainops.transforms` or, on JAX, wrap it in "
            "`keras_trainops.transforms.FromOptax`."
        )
    return f"{type(value).__name__!r} is a named tuple, not a list."


def _about_keras_object(value: Any) -> str | None:
    name = repr(type(value).__name__)
    if isinstance(value, keras.callbacks.Callback):
        return f"{name} is a callback: it belongs in `fit(callbacks=...)`."
    for kind in _KERAS_CLASSES:
        if isinstance(value, kind):
            return f"{name} is a Keras `{kind.__name__}`."
    return None
