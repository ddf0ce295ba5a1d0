"""Models and checkpoints of dense layers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np


def dense(sizes: dict[str, tuple[int, int]]) -> keras.Model:
    """Return a model with parallel dense layers of these names, inputs and outputs."""
    inputs = [keras.Input((n,)) for n, _ in sizes.values()]
    outputs = [
        keras.layers.Dense(units, name=name)(x)
        for x, (name, (_, units)) in zip(inputs, sizes.items(), strict=True)
    ]
    return keras.Model(inputs, outputs)


def arrays(sizes: dict[str, tuple[int, int]], weight: str = "w", bias: str = "b") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for i, (name, (inputs, outputs)) in enumerate(sizes.items()):
        shape = (outputs, inputs) if weight == "weight" else (inputs, outputs)
        found[f"{name}{weight}"] = np.full(shape, i + 1.0, "float32")
        found[f"{name}{bias}"] = np.full(outputs, -i - 1.0, "float32")
    return found


def square(*names: str, shape: tuple[int, int] = (3, 3)) -> dict[str, Any]:
    return {name: np.full(shape, i + 1.0, "float32") for i, name in enumerate(names)}
