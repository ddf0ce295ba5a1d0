"""Models and checkpoints of dense layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

Placed: TypeAlias = tuple[keras.layers.Layer, tuple[int, ...]]


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


def parallel(layers: Sequence[Placed]) -> keras.Model:
    """Return a model of layers that do not see each other, each with the shape of its input."""
    inputs = [keras.Input(shape) for _, shape in layers]
    outputs = [layer(x) for x, (layer, _) in zip(inputs, layers, strict=True)]
    return keras.Model(inputs, outputs, name="net")


def linear(name: str, inputs: int, outputs: int, bias: bool = False) -> Placed:
    return keras.layers.Dense(outputs, use_bias=bias, name=name), (inputs,)


def norm(name: str, size: int) -> Placed:
    return keras.layers.LayerNormalization(name=name), (size,)


def batch_norm(name: str, size: int, **options: Any) -> Placed:
    return keras.layers.BatchNormalization(name=name, **options), (2, 2, size)


def conv(name: str, inputs: int, outputs: int, size: int = 3) -> Placed:
    layer = keras.layers.Conv2D(outputs, size, padding="same", use_bias=False, name=name)
    return layer, (4, 4, inputs)


def tensors_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return random arrays of these shapes, by name."""
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype("float32") for name, shape in shapes.items()}


def torch_norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def torch_batch_norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.num_batches_tracked": ()}
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{leaf}": (size,) for leaf in leaves} | shapes
