"""Keras layers give the same outputs as the modules of Flax whose tensors they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import keras_trainops as kt
from keras_trainops.layouts.layers import layouts_of
from tests.helpers import numpy, value

linen = pytest.importorskip("flax.linen", reason="flax is not installed")
jax = pytest.importorskip("jax", reason="jax is not installed")
pytestmark = pytest.mark.once


def randomised(module: Any, *inputs: np.ndarray) -> dict[str, Any]:
    """The parameters of a module, all random."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    draw = lambda leaf: rng.uniform(-0.5, 0.5, leaf.shape).astype("f4")  # noqa: E731
    return jax.tree.map(draw, shapes)["params"]


def assign(layer: keras.layers.Layer, tensors: Mapping[str, np.ndarray]) -> None:
    """Assign the first reading of Keras's convention to the variables whose paths end like this."""
    layouts = layouts_of(layer)
    for ending, tensor in tensors.items():
        (variable,) = [v for v in layer.weights if v.path.endswith(ending)]
        readings = layouts[id(variable)].readings(tensor.shape)
        reading = next(r for r in readings if r.convention in ("keras", None))
        adapted = (
            [tensor] if reading.adapter is None else [reading.adapter([tensor], variable.shape)]
        )
        variable.assign(adapted[0])


def assert_same(layer: Any, inputs: Sequence[np.ndarray], expected: Any) -> None:
    np.testing.assert_allclose(numpy(layer(*inputs)), np.asarray(expected), rtol=1e-5, atol=1e-5)
    for variable in layer.weights:  # every element counts
        kept = value(variable)
        variable.assign(kept.reshape(-1)[::-1].reshape(kept.shape))
        assert np.abs(numpy(layer(*inputs)) - np.asarray(expected)).max() > 1e-4, variable.path
        variable.assign(kept)


def images(channels: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, 5, 6, channels)).astype("f4")


CONVOLUTIONS: dict[str, tuple[Any, Any, int]] = {
    "Conv": (linen.Conv(6, (3, 2), padding="VALID"), layers.Conv2D(6, (3, 2)), 4),
    "Conv with groups": (
        linen.Conv(6, (3, 2), padding="VALID", feature_group_count=2),
        layers.Conv2D(6, (3, 2), groups=2),
        4,
    ),
    "depthwise": (
        linen.Conv(12, (3, 2), padding="VALID", feature_group_count=4),
        layers.DepthwiseConv2D((3, 2), depth_multiplier=3),
        4,
    ),
    "ConvTranspose": (
        linen.ConvTranspose(6, (3, 2), padding="VALID"),
        layers.Conv2DTranspose(6, (3, 2)),
        4,
    ),
    "ConvTranspose, transposed kernel": (
        linen.ConvTranspose(6, (3, 2), padding="VALID", transpose_kernel=True),
        layers.Conv2DTranspose(6, (3, 2)),
        4,
    ),
    "Dense": (linen.Dense(6), layers.Dense(6), 4),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_kernels(name: str) -> None:
    module, layer, channels = CONVOLUTIONS[name]
    x = images(channels)
    params = randomised(module, x)
    layer(x)
    assign(layer, params)
    assert_same(layer, [x], module.apply({"params": params}, x))


def test_square_kernels_of_transposed_convolutions_have_two_readings() -> None:
    x = images(4)
    layer = layers.Conv2DTranspose(4, (3, 2))
    layer(x)
    for transposed in (True, False):
        module = linen.ConvTranspose(4, (3, 2), padding="VALID", transpose_kernel=transposed)
        params = randomised(module, x)
        readings = layouts_of(layer)[id(layer.kernel)].readings((3, 2, 4, 4))
        unchanged, flipped = [r for r in readings if r.convention == "keras"]
        reading = unchanged if transposed else flipped
        kernel = params["kernel"]
        adapted = reading.adapter([kernel], kernel.shape) if reading.adapter else kernel
        layer.kernel.assign(adapted)
        layer.bias.assign(params["bias"])
        assert_same(layer, [x], module.apply({"params": params}, x))


def test_attention() -> None:
    module = linen.MultiHeadDotProductAttention(2, qkv_features=6, out_features=7)
    x = np.random.default_rng(1).normal(size=(2, 5, 7)).astype("f4")
    params = randomised(module, x)
    layer = layers.MultiHeadAttention(2, 3)
    layer(x, x)
    names = {"query": "query", "key": "key", "value": "value", "out": "attention_output"}
    tensors = {
        f"{ours}/{leaf}": params[theirs][leaf]
        for theirs, ours in names.items()
        for leaf in ("kernel", "bias")
    }
    assign(layer, tensors)
    expected = np.asarray(module.apply({"params": params}, x))
    np.testing.assert_allclose(numpy(layer(x, x)), expected, rtol=1e-5, atol=1e-5)
    kernel = next(v for v in layer.weights if v.path.endswith("query/kernel"))
    kernel.assign(value(kernel)[:, ::-1])  # other heads
    assert np.abs(numpy(layer(x, x)) - expected).max() > 1e-3


def joined(params: Mapping[str, Any], names: Sequence[str], leaf: str) -> np.ndarray:
    """The tensors of all gates in one, in the order of Keras."""
    concat = kt.adapt.Concat(axis=-1)
    return concat([params[name][leaf] for name in names], ())


def test_gates_of_an_lstm() -> None:
    module = linen.RNN(linen.OptimizedLSTMCell(3))
    x = np.random.default_rng(1).normal(size=(2, 5, 4)).astype("f4")
    params = randomised(module, x)
    (cell,) = params.values()
    layer = layers.LSTM(3, return_sequences=True)
    layer(x)
    tensors = {
        "cell/kernel": joined(cell, ["ii", "if", "ig", "io"], "kernel"),
        "recurrent_kernel": joined(cell, ["hi", "hf", "hg", "ho"], "kernel"),
        "bias": joined(cell, ["hi", "hf", "hg", "ho"], "bias"),
    }
    assign(layer, tensors)
    assert_same(layer, [x], module.apply({"params": params}, x))


def test_gates_of_a_gru() -> None:
    module = linen.RNN(linen.GRUCell(3))
    x = np.random.default_rng(1).normal(size=(2, 5, 4)).astype("f4")
    params = randomised(module, x)
    (cell,) = params.values()
    layer = layers.GRU(3, return_sequences=True)
    layer(x)
    state_bias = np.concatenate([np.zeros(6, "f4"), cell["hn"]["bias"]])
    tensors = {
        "cell/kernel": joined(cell, ["iz", "ir", "in"], "kernel"),
        "recurrent_kernel": joined(cell, ["hz", "hr", "hn"], "kernel"),
        "bias": np.stack([joined(cell, ["iz", "ir", "in"], "bias"), state_bias]),
    }
    assign(layer, tensors)
    assert_same(layer, [x], module.apply({"params": params}, x))
