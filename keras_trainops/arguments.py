"""What users put where it does not belong, and what to tell them."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainops.state import Stateful

_OF_KERAS = (
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


def misplaced(value: Any) -> str | None:
    """Why a value is neither a transform nor an update nor a function for one; None if it may be.

    Many of these can be called, and so would pass as functions until the first step fails.
    """
    if isinstance(value, type):
        return f"{value.__name__!r} is a class: make one, as in `{value.__name__}(...)`."
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        if value._fields == ("init", "update"):
            return (
                "This is an optax transform, which keeps its state outside of Keras's variables: "
                "use its counterpart in `keras_trainops.transforms`, or write a "
                "`GradientTransform`."
            )
        return f"{type(value).__name__!r} is a named tuple, and no list."
    if isinstance(value, Stateful) and value.argument:
        return f"It belongs in `{value.argument}`: {value!r}."
    if isinstance(value, keras.callbacks.Callback):
        return f"{type(value).__name__!r} is a callback: it belongs in `fit(callbacks=...)`."
    if isinstance(value, _OF_KERAS):
        kinds = [kind.__name__ for kind in _OF_KERAS if isinstance(value, kind)]
        return f"{type(value).__name__!r} is a Keras `{kinds[0]}`."
    return None
