"""Adapters as plain data, for plans in files. Nothing but adapters is ever created from a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from keras_trainops import adapt
from keras_trainops.adapt.base import Adapter, ArrayFunction, Chain
from keras_trainops.adapt.layout import ReshapeFrom

_NAME = "adapter"
_INTERNAL = {"ReshapeFrom": ReshapeFrom}


def as_config(adapter: Adapter) -> dict[str, Any]:
    """Return an adapter as data that can be stored as JSON.

    Raises:
        ValueError: If the adapter is a callable, is of a class that is not registered with Keras,
            or has an argument that cannot be stored.

    Example:
        >>> as_config(adapt.Chain(adapt.Transpose(), adapt.Crop(axis=0)))
        {'adapter': 'Chain', 'adapters': [{'adapter': 'Transpose', 'axes': None}, \
{'adapter': 'Crop', 'axis': 0, 'indices': None}]}
    """
    if isinstance(adapter, ArrayFunction):
        raise ValueError(f"{adapter}: a callable cannot be stored. Use an `Adapter`")
    kind = type(adapter)
    if _ours(kind.__name__) is kind:
        name = kind.__name__
    else:
        name = keras.saving.get_registered_name(kind)
        if keras.saving.get_registered_object(name) is not kind:
            raise ValueError(
                f"{adapter}: its class must be registered, to be found again. Decorate it with "
                "`@keras.saving.register_keras_serializable()`"
            )
    if isinstance(adapter, Chain):
        return {_NAME: name, "adapters": [as_config(each) for each in adapter.adapters]}
    return {_NAME: name, **adapter.get_config()}


def from_config(config: Mapping[str, Any]) -> Adapter:
    """Return the adapter that `as_config` stored.

    Raises:
        ValueError: If it is of an unknown class, or its arguments are not valid.
    """
    name = config.get(_NAME)
    kind = _ours(name) or keras.saving.get_registered_object(str(name))
    if not isinstance(kind, type) or not issubclass(kind, Adapter):
        raise ValueError(
            f"there is no adapter {name!r}. If it is your own, import the module that registers it"
        )
    arguments = {key: value for key, value in config.items() if key != _NAME}
    try:
        if kind is Chain:
            return Chain(*map(from_config, arguments["adapters"]))
        return kind.from_config(arguments)
    except Exception as error:  # a file may contain anything
        raise ValueError(f"the arguments of {name} are not valid: {error!r}") from error


def _ours(name: object) -> type[Adapter] | None:
    """Return the class of this package with a name."""
    if not isinstance(name, str):
        return None
    kind = getattr(adapt, name, None) if name in adapt.__all__ else _INTERNAL.get(name)
    is_concrete = isinstance(kind, type) and issubclass(kind, Adapter) and kind is not Adapter
    return kind if is_concrete else None
