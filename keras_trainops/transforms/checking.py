"""Checks of the gradients that a transform returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_trainops.backends.types import Gradient


def checked(
    transform: Any,
    before: Sequence[Gradient],
    after: Any,
    variables: Sequence[keras.Variable],
) -> Sequence[Gradient]:
    """Return the transformed gradients if they match the given ones; runs once per trace.

    Args:
        transform: The transform, for messages.
        before: The gradients it was given.
        after: Its result.
        variables: The variables.

    Raises:
        ValueError: If the result differs in length, shapes, dtypes or Nones.
    """
    name = _name(transform)
    if not isinstance(after, (list, tuple)):
        raise ValueError(f"{name} must return a list of gradients. Received: {after!r}")
    if len(after) != len(before):
        raise ValueError(f"{name} returned {len(after)} gradients for {len(before)} variables.")
    for old, new, variable in zip(before, after, variables, strict=True):
        if (old is None) != (new is None):
            raise ValueError(
                f"{name} returned {_description(new)} for {variable.path!r}, whose gradient was "
                f"{_description(old)}. None must stay None."
            )
        if old is not None and _description(old) != _description(new):
            raise ValueError(
                f"{name} returned a gradient of {_description(new)} for {variable.path!r}, which "
                f"was of {_description(old)}."
            )
    return after


def _description(gradient: Gradient) -> str:
    if not hasattr(gradient, "dtype"):
        return repr(gradient)
    dtype = keras.backend.standardize_dtype(gradient.dtype)
    return f"shape {tuple(gradient.shape)} and dtype {dtype}"


def _name(transform: Any) -> str:
    kind, function = type(transform).__name__, getattr(transform, "function", None)
    return f"{kind}({getattr(function, '__name__', function)})" if function else kind
