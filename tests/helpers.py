"""Models and comparisons that several test files use."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest


def value(variable: keras.Variable) -> np.ndarray:
    """A copy of a variable's value."""
    return np.array(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(variable)))


def numpy(tensor: object) -> np.ndarray:
    """A tensor of any backend as an array."""
    return np.array(keras.ops.convert_to_numpy(tensor))


def state_of(model: keras.Model) -> list[keras.Variable]:
    """All weights, seeds, optimizer variables and the state of updates."""
    optimizer, ops = getattr(model, "optimizer", None), getattr(model, "train_ops", None)
    state = [*(optimizer.variables if optimizer else []), *(ops.policy.variables if ops else [])]
    return [*model.variables, *state]


def values(model: keras.Model) -> list[np.ndarray]:
    """Copies of all that training changes."""
    return [value(v) for v in state_of(model)]


def weights(model: keras.Model) -> list[np.ndarray]:
    """Copies of all weights."""
    return [value(v) for v in model.weights]


def assert_same(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    """Bit for bit equal."""
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def assert_same_arithmetic(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    """Bit for bit equal, but for what XLA changes as it fuses two programs in different ways."""
    if keras.backend.backend() != "jax":
        assert_same(first, second)
    apart = {
        i: float(np.abs(a - b).max()) for i, (a, b) in enumerate(zip(first, second, strict=True))
    }
    assert max(apart.values()) <= 1e-6, {i: d for i, d in apart.items() if d > 1e-6}


def differ(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    """The largest difference."""
    return max(float(np.abs(a - b).max()) for a, b in zip(first, second, strict=True))


def randomise(model: keras.Model, seed: int) -> keras.Model:
    """Gives every weight a random value of its own, so that a wrong restore shows."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(rng.normal(size=variable.shape))
    return model


@contextlib.contextmanager
def refused(model: keras.Model, match: str, kind: type[Exception] = ValueError) -> Iterator[None]:
    """The block raises `kind`, and every variable of `model` is bit for bit what it was."""
    state = state_of(model)
    before = [value(v) for v in state]
    with pytest.raises(kind, match=match):
        yield
    assert_same([value(v) for v in state], before)


def two_layers(seed: int = 0, name: str | None = None) -> keras.Model:
    """`trunk` (4 to 3) and `head` (3 to 2)."""
    inputs = keras.Input((4,))
    x = keras.layers.Dense(3, name="trunk")(inputs)
    return randomise(keras.Model(inputs, keras.layers.Dense(2, name="head")(x), name=name), seed)


class Block(keras.layers.Layer):
    """Own weights, a sublayer as an attribute, and a list of sublayers."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.first = keras.layers.Dense(3, name="first")
        self.rest = [
            keras.layers.Dense(3, name="second"),
            keras.layers.BatchNormalization(name="norm"),
        ]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.shift = self.add_weight(shape=(3,), name="shift")
        self.gain = self.add_weight(shape=(3,), name="gain")
        self.first.build(input_shape)
        for layer in self.rest:
            layer.build((None, 3))

    def call(self, x: object) -> object:
        x = self.first(x)
        for layer in self.rest:
            x = layer(x)
        return x * self.gain + self.shift


def rich_model(seed: int) -> keras.Model:
    """Nested models with equal paths, attention, recurrent layers, seeds, a sequential model."""

    def inner(name: str) -> keras.Model:
        x = keras.Input((4,))
        return keras.Model(x, keras.layers.Dense(3, name="dense")(x), name=name)

    inputs = keras.Input((4,))
    x = Block(name="block")(inputs) + inner("left")(inputs) + inner("right")(inputs)
    x = keras.layers.Dropout(0.1, name="drop")(x)
    steps = inputs[:, None]
    y = keras.layers.MultiHeadAttention(2, 3, name="attention")(steps, steps)
    y = keras.layers.Bidirectional(keras.layers.LSTM(3, name="lstm"), name="both")(y)
    z = keras.layers.GRU(3, name="gru")(steps)
    z = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(3, name="a"),
            keras.layers.LayerNormalization(name="ln"),
        ],
        name="sequence",
    )(z)
    x = keras.layers.Concatenate()([x, y, z])
    return randomise(keras.Model(inputs, keras.layers.Dense(2, name="head")(x)), seed)


def make_everything(model_maker: Callable[[int], keras.Model]) -> tuple[keras.Model, keras.Model]:
    """A source and a target that differ in every weight."""
    source, target = model_maker(1), model_maker(2)
    assert all(
        not np.array_equal(a, b) for a, b in zip(weights(source), weights(target), strict=True)
    )
    return source, target


def run(code: str, **environment: str) -> None:
    """Runs a program that ends with printing "as it should be"."""
    child = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert child.returncode == 0, child.stderr[-3000:]
    assert "as it should be" in child.stdout


@functools.cache
def two_replicas() -> Any:
    """The one strategy of a process: those of several would exchange tensors under equal keys."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
