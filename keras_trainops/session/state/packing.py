"""The state of callbacks as JSON, with references in place of arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

_ARRAYS = "callbacks/"  # prefix of the keys of callbacks' arrays
_MAX_DEPTH = 200  # of lists and mappings


def is_attribute(name: str) -> bool:
    """Return True for the name of an attribute that may hold state of a callback."""
    return (
        name.isidentifier()
        and not name.startswith("_")
        and not hasattr(keras.callbacks.Callback, name)
    )


def packed(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """Convert a value for JSON, moving its arrays to `arrays`.

    Args:
        value: Numbers, strings, arrays, or lists and dictionaries of these.
        name: A name for the value, unique among those that share `arrays`.
        arrays: Receives the arrays by key.
    """
    if isinstance(value, dict):
        return {k: packed(v, f"{name}/{k}", arrays) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [packed(v, f"{name}/{i}", arrays) for i, v in enumerate(value)]
    if isinstance(value, np.ndarray):
        arrays[f"{_ARRAYS}{name}"] = value
        return {"array": f"{_ARRAYS}{name}"}
    return value.item() if isinstance(value, np.generic) else value


def unpacked(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Return what `packed` converted, with copies of the arrays, and lists in place of tuples."""
    if isinstance(value, dict):
        key = _reference(value)
        if key in arrays:
            return np.array(arrays[key])
        return {k: unpacked(v, arrays) for k, v in value.items()}
    return [unpacked(v, arrays) for v in value] if isinstance(value, list) else value


def references(value: Any, depth: int = 0) -> Iterator[str]:
    """Yield the keys of the arrays that a packed value refers to.

    Raises:
        ValueError: If the value is nested too deeply.
    """
    if depth > _MAX_DEPTH:
        raise ValueError("session.json is nested too deeply")
    if isinstance(value, dict):
        key = _reference(value)
        if key:
            yield key
        for item in value.values():
            yield from references(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from references(item, depth + 1)


def _reference(value: Mapping[str, Any]) -> str:
    """Return the key of the array that a packed dictionary replaces; empty if it replaces none."""
    key = value.get("array")
    is_key = isinstance(key, str) and key.startswith(_ARRAYS)
    return str(key) if is_key and set(value) == {"array"} else ""
