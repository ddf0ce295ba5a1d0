"""The state of the callbacks beside a session: what they keep in plain attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

# Keras turns the sign of `min_delta` when it first sees the metric: it does so again.
_NOT_STATE = ("params", "min_delta")
_LARGE = 1_000_000  # bytes


class Neighbours:
    """The callbacks that a session saves and resumes with the model.

    The state of a callback is what training changed in its public attributes: numbers, strings,
    arrays, and lists and dictionaries of these. What training did not change is the program's to
    say, so that a resumed run may, for example, have another `patience`. Large arrays are taken to
    be replaced, not changed in place: nothing is copied for them or compared.

    Args:
        callbacks: The callbacks.
    """

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        self._callbacks: dict[str, keras.callbacks.Callback] = {}
        for callback in callbacks:
            name = type(callback).__name__
            same = sum(type(c).__name__ == name for c in self._callbacks.values())
            self._callbacks[f"{name}/{same}"] = callback
        self._at_start: dict[str, dict[str, Any]] = {}

    def start(self) -> None:
        """Notes how they are before training changes anything."""
        self._at_start = {k: _copied(_plain(c)) for k, c in self._callbacks.items()}

    def state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What training changed: a document, and the arrays that it refers to."""
        arrays: dict[str, np.ndarray] = {}
        document = {
            key: {
                name: _packed(value, f"callbacks/{key}/{name}", arrays)
                for name, value in _plain(callback).items()
                if not _same(value, self._at_start.get(key, {}).get(name, _plain))
            }
            for key, callback in self._callbacks.items()
        }
        return document, arrays

    def restore(self, document: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[str]:
        """Puts state back.

        Returns:
            What had state and is not there any more.
        """
        for key, callback in self._callbacks.items():
            for name, value in document.get(key, {}).items():
                setattr(callback, name, _unpacked(value, arrays))
        return [key for key, state in document.items() if state and key not in self._callbacks]


def _plain(callback: keras.callbacks.Callback) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(callback).items()
        if not name.startswith("_") and name not in _NOT_STATE and _is_plain(value)
    }


def _copied(value: Any) -> Any:
    """A copy of all but large arrays."""
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_copied, value)) if type(value) in (list, tuple) else value
    if isinstance(value, np.ndarray) and value.nbytes <= _LARGE:
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
        return a is b if max(a.nbytes, b.nbytes) > _LARGE else _equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    return bool(a == b)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _packed(value: Any, key: str, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        return {k: _packed(v, f"{key}/{k}", arrays) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_packed(v, f"{key}/{i}", arrays) for i, v in enumerate(value)]
    if isinstance(value, np.ndarray):
        arrays[key] = _copied(value)
        return {"array": key}
    return value.item() if isinstance(value, np.generic) else value


def _unpacked(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"array"} and value["array"] in arrays:
            return np.array(arrays[value["array"]])
        return {k: _unpacked(v, arrays) for k, v in value.items()}
    return [_unpacked(v, arrays) for v in value] if isinstance(value, list) else value
