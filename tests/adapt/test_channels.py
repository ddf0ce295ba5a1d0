"""`InputChannels`, compared with the rule of timm."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest

import keras_trainops as kt

RNG = np.random.default_rng(0)


def by_timm(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Apply the rule of timm's `adapt_input_conv` for RGB, in the layout of Keras."""
    if channels == 1:
        return kernel.sum(-2, keepdims=True)
    if channels == 3:
        return kernel
    return np.tile(kernel, (1, 1, math.ceil(channels / 3), 1))[:, :, :channels] * (3 / channels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 8])
def test_adapts_rgb_like_timm(channels: int) -> None:
    kernel = RNG.normal(size=(5, 4, 3, 6)).astype("f4")
    adapted = kt.adapt.InputChannels()([kernel], (5, 4, channels, 6))
    assert adapted.dtype == kernel.dtype
    np.testing.assert_allclose(adapted, by_timm(kernel, channels), rtol=1e-6)


@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3), (3, 6), (6, 3), (1, 4), (4, 2)])
def test_equal_channels_give_the_same_response(old: int, new: int) -> None:
    models = []
    for channels in (old, new):
        inputs = keras.Input((6, 5, channels))
        models.append(keras.Model(inputs, keras.layers.Conv2D(4, (2, 3), name="stem")(inputs)))
    kt.restore(models[1], models[0], adapt={"stem/kernel": kt.adapt.InputChannels()})
    gray = RNG.normal(size=(2, 6, 5, 1)).astype("f4")
    outputs = [
        keras.ops.convert_to_numpy(model(np.repeat(gray, channels, -1)))
        for model, channels in zip(models, (old, new), strict=True)
    ]
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)


def test_rejects_masked_slices() -> None:
    padded = [kt.adapt.Pad(axis=3), kt.adapt.InputChannels()]
    chain = kt.adapt.Chain(*padded)
    with pytest.raises(ValueError, match=r"leaves some to the variable\. Put it before"):
        chain([np.ones((2, 2, 3, 4))], (2, 2, 1, 5))
    adapted = kt.adapt.Chain(*padded[::-1])([np.ones((2, 2, 3, 4))], (2, 2, 1, 5))
    np.testing.assert_array_equal(np.ma.getmaskarray(adapted)[0, 0, 0], [0, 0, 0, 0, 1])
