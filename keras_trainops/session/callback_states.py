"""The state that other callbacks keep in plain attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_trainops.session.state.packing import is_attribute, packed, unpacked

# Keras negates `min_delta` when it first sees the metric, and does so again in a resumed run.
_NOT_STATE = ("params", "min_delta")
_LARGE_BYTES = 1_000_000
_MISSING = object()


class CallbackStates:
    """The state of the callbacks that a session saves and resumes with the model.

    The state of a callback is every public attribute that training changed: numbers, strings,
    arrays, and lists and dictionaries of these. Attributes that training did not change belong to
    the program, so a resumed run may use a different `patience`, for example. Large arrays are
    assumed to be replaced rather than changed in place: they are neither copied nor compared.

    Args:
        callbacks: The callbacks, before training has changed anything.
    """

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        self._callbacks: dict[str, keras.callbacks.Callback] = {}
        for callback in callbacks:
            name = type(callback).__name__
            same = sum(type(c).__name__ == name for c in self._callbacks.values())
            self._callbacks[f"{name}/{same}"] = callback
        self._initial = {k: _copied(_plain_attributes(c)) for k, c in self._callbacks.items()}

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the changed attributes: a JSON document, and the arrays that it refers to."""
        arrays: dict[str, np.ndarray] = {}
        document = {
            key: {
                name: packed(value, f"{key}/{name}", arrays)
                for name, value in _plain_attributes(callback).items()
                if not _same(value, self._initial[key].get(name, _MISSING))
            }
            for key, callback in self._callbacks.items()
        }
        return document, {key: _copied(array) for key, array in arrays.items()}

    def restore(self, document: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[str]:
        """Restore the state that `state` returned.

        Args:
            document: The saved document.
            arrays: The saved arrays.

        Returns:
            The names of callbacks that have a saved state but are missing now.
        """
        for key, callback in self._callbacks.items():
            for name, value in document.get(key, {}).items():
                setattr(callback, name, unpacked(value, arrays))
        return [key for key, state in document.items() if state and key not in self._callbacks]


def _plain_attributes(callback: keras.callbacks.Callback) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(callback).items()
        if is_attribute(name) and name not in _NOT_STATE and _is_plain(value)
    }


def _copied(value: Any) -> Any:
    """Copy a value, but not its large arrays."""
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_copied, value)) if type(value) in (list, tuple) else value
    if isinstance(value, np.ndarray) and value.nbytes <= _LARGE_BYTES:
        return value.copy()
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(v) for v in value)
    if isinstance(value, np.ndarray):
        return value.dtype != object
    return value is None or isinstance(value, (bool, int, float, str, np.generic))


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a is b if max(a.nbytes, b.nbytes) > _LARGE_BYTES else _same_array(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    return bool(a == b)


def _same_array(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
