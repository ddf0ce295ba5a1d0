"""Values and comparisons for several test files of this folder."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tests.helpers import two_layers, value


def marks(model: keras.Model) -> list[float]:
    """Return the one value that fills each weight."""
    return [float(value(v).flat[0]) for v in model.weights]


ALL = {
    "trunk/kernel": np.full((4, 3), 1.0),
    "trunk/bias": np.full(3, 2.0),
    "head/kernel": np.full((3, 2), 3.0),
    "head/bias": np.full(2, 4.0),
}


def without(*keys: str, **more: Any) -> dict[str, Any]:
    return {**{k: v for k, v in ALL.items() if k not in keys}, **more}


def saved(arrays: dict[str, Any]) -> str:
    np.savez("w.npz", **arrays)
    return "w.npz"


def arrays(seed: int = 5) -> dict[str, np.ndarray]:
    return {v.path: value(v) for v in two_layers(seed).weights}
