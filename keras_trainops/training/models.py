"""Ready-made models with the mixin, and the mixin for models that exist."""

from __future__ import annotations

import functools

import keras

from keras_trainops.training.mixin import TrainOpsMixin


@keras.saving.register_keras_serializable(package="keras_trainops")
class TrainOpsModel(TrainOpsMixin, keras.Model):
    """A ready-made functional model with the mixin: `TrainOpsModel(inputs, outputs)`.

    Example:
        >>> import keras, keras_trainops as kt
        >>> inputs = keras.Input((4,))
        >>> model = kt.TrainOpsModel(inputs, keras.layers.Dense(2)(inputs))
    """


@keras.saving.register_keras_serializable(package="keras_trainops")
class TrainOpsSequential(TrainOpsMixin, keras.Sequential):
    """`keras.Sequential` with the mixin; `with_train_ops` makes one of a sequential model."""


def with_train_ops(model: keras.Model) -> keras.Model:
    """Adds the mixin to an existing model: the same object, variables and names.

    The model's class is extended in place, whatever it is: functional, sequential or subclassed.
    Compile it (again) before training. To save a *subclassed* model as `.keras` and load it in
    another process, mix `TrainOpsMixin` into its class instead.

    Args:
        model: Any Keras model.

    Returns:
        `model`.

    Raises:
        ValueError: If `model` is no Keras model.

    Example:
        >>> import keras, keras_trainops as kt
        >>> model = kt.with_train_ops(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a Keras model. Received: {model!r}")
    if not isinstance(model, TrainOpsMixin):
        model.__class__ = _extended(model.__class__)
        model.train_function = None
    return model


@functools.cache
def _extended(cls: type) -> type:
    """The class `cls` with the mixin: one that Keras can load by name where there is one."""
    if cls is keras.Sequential:
        return TrainOpsSequential
    name = f"TrainOps{cls.__name__}"
    if cls.__module__.startswith("keras.") and cls.__name__ == "Functional":
        return _functional_class()
    return type(name, (TrainOpsMixin, cls), {"__module__": cls.__module__})


def _functional_class() -> type[keras.Model]:
    """`TrainOpsModel` with Keras's functional class as its base, which its first use makes it."""
    probe = keras.Input((1,), name="probe_input")
    return type(TrainOpsModel(probe, keras.layers.Identity(name="probe")(probe), name="probe"))
