"""Ready-made models with the mixin, and a way to add the mixin to existing models."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import keras

from keras_trainops import keras_private
from keras_trainops.training.mixin import TrainOpsMixin

_PREFIX = "TrainOps"  # of the names of extended classes
_CLASS = "extended_class"  # the key of the user's class in a model's configuration


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
    """`keras.Sequential` with the mixin, as `with_train_ops` makes it."""


# A legacy `.h5` file names a model's class without the package that it is registered under.
keras.saving.get_custom_objects().update(
    {cls.__name__: cls for cls in (TrainOpsModel, TrainOpsSequential)}
)


def with_train_ops(model: keras.Model) -> TrainOpsMixin:
    """Add the mixin to an existing model, which keeps its identity, variables and names.

    The model's class is extended in place, be it functional, sequential or subclassed. Compile it
    (again) before training. A `.keras` file of a subclassed model loads, with the mixin, wherever
    the class itself would: if it is registered, or among `custom_objects`.

    Args:
        model: Any Keras model.

    Returns:
        `model`.

    Raises:
        ValueError: If `model` is not a Keras model.

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
def _extended(cls: type[keras.Model]) -> type[keras.Model]:
    """Return the class `cls` with the mixin."""
    if cls is keras.Sequential:
        return TrainOpsSequential
    if keras_private.is_functional(cls):
        return _functional_class()
    attributes = {
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
        "extends": cls,
        "get_config": _config_naming(cls),
    }
    extended = type(f"{_PREFIX}{cls.__name__}", (_Extension, TrainOpsMixin, cls), attributes)
    return _registered(extended)


def _functional_class() -> type[keras.Model]:
    """Return `TrainOpsModel` as Keras rebases it on its functional class at the first use."""
    probe = keras.Input((1,), name="probe_input")
    outputs = keras.layers.Identity(name="probe")(probe)
    return type(cast("Any", TrainOpsModel)(probe, outputs, name="probe"))


# All extended classes share one registered name: any of them loads the files of all others.
_registered: Any = keras.saving.register_keras_serializable("keras_trainops", name="Extended")


@_registered
class _Extension:
    """Makes files of classes that `with_train_ops` extended loadable.

    Such a class exists only in the current process. The configuration names the class it extends.
    """

    extends: type[keras.Model]

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError  # every extended class defines it

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> keras.Model:
        """Create the user's class from its own configuration, and extend it."""
        own = {key: value for key, value in config.items() if key != _CLASS}
        if _CLASS not in config:
            return with_train_ops(cls.extends.from_config(own))
        named, find = config[_CLASS], keras.saving.get_registered_object
        known = {}
        # For classes that are not registered, `clone_model` passes `TrainOps...` on.
        extended = find(f"{_PREFIX}{named['class_name']}")
        if find(named["registered_name"]) is None and hasattr(extended, "extends"):
            known = {named["registered_name"]: extended.extends}
        return with_train_ops(
            keras.saving.deserialize_keras_object({**named, "config": own}, custom_objects=known)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as Keras does, as a `.keras` file; any model's class can load it."""
        of_keras: Any = super()
        load, arguments = of_keras.__reduce__()
        return getattr(TrainOpsModel, load.__name__), arguments


def _config_naming(cls: type[keras.Model]) -> Callable[[keras.Model], dict[str, Any]]:
    """Return the class's own `get_config`, which also names the class."""
    named = {
        "module": None if cls.__module__ == "__main__" else cls.__module__,
        "class_name": cls.__name__,
        "registered_name": keras.saving.get_registered_name(cls),
    }

    @functools.wraps(cls.get_config)  # copies Keras's mark of a default `get_config`, too
    def get_config(self: keras.Model) -> dict[str, Any]:
        return {**cls.get_config(self), _CLASS: dict(named)}

    return get_config


keras_private.keep_in_clones(TrainOpsMixin, with_train_ops)
