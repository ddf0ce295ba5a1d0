from __future__ import annotations

import h5py
import keras
import numpy as np
import pytest

import keras_trainops as kt
from tests.helpers import assert_same, make_everything, randomise, weights

pytestmark = pytest.mark.once


def test_adds_the_layer_to_keras_1_names() -> None:
    with h5py.File("k1.h5", "w") as file:
        file.attrs["layer_names"] = [b"dense_1"]
        group = file.create_group("dense_1")
        group.attrs["weight_names"] = [b"dense_1_W", b"dense_1_b"]
        group["dense_1_W"], group["dense_1_b"] = np.ones((4, 3)), np.ones(3)
    with kt.open_checkpoint("k1.h5") as checkpoint:
        assert list(checkpoint) == ["dense_1/kernel", "dense_1/bias"]


def test_separates_names_shared_with_a_nested_model() -> None:
    def build(seed: int) -> keras.Model:
        x = keras.Input((4,))
        inner = keras.Model(x, keras.layers.Dense(4, name="dense")(x), name="inner")
        inputs = keras.Input((4,))
        return randomise(
            keras.Model(inputs, keras.layers.Dense(4, name="dense")(inner(inputs))), seed
        )

    source, target = make_everything(build)
    source.save("w.h5", include_optimizer=False)  # Keras cannot write the optimizer's names here
    report = kt.restore(target, "w.h5")
    assert_same(weights(target), weights(source))
    assert report.unexpected == ()
